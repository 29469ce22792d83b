//! The rules: names, texts and addresses as the reference has them, since people and tools refer to them.

use crate::text::quote::quote;

/// A rule of the linter.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, as in `skip=NAME`.
    pub name: &'static str,
    /// What it wants.
    pub description: &'static str,
    /// Where it is explained; empty if nowhere.
    pub url: &'static str,
    /// Off unless asked for.
    pub experimental: bool,
}

macro_rules! rules {
    ($($id:ident, $name:literal, $slug:literal, $experimental:literal, $description:literal;)*) => {
        $(pub(crate) static $id: Rule = Rule {
            name: $name,
            description: $description,
            url: rules!(@url $slug),
            experimental: $experimental,
        };)*
        /// All rules.
        pub static ALL: &[&Rule] = &[$(&$id),*];
    };
    (@url "") => { "" };
    (@url $slug:literal) => { concat!("https://docs.docker.com/go/dockerfile/rule/", $slug, "/") };
}

rules! {
    STAGE_NAME_CASING, "StageNameCasing", "stage-name-casing", false, "Stage names should be lowercase";
    FROM_AS_CASING, "FromAsCasing", "from-as-casing", false, "The 'as' keyword should match the case of the 'from' keyword";
    NO_EMPTY_CONTINUATION, "NoEmptyContinuation", "no-empty-continuation", false, "Empty continuation lines will become errors in a future release";
    CONSISTENT_INSTRUCTION_CASING, "ConsistentInstructionCasing", "consistent-instruction-casing", false, "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DUPLICATE_STAGE_NAME, "DuplicateStageName", "duplicate-stage-name", false, "Stage names should be unique";
    RESERVED_STAGE_NAME, "ReservedStageName", "reserved-stage-name", false, "Reserved words should not be used as stage names";
    JSON_ARGS_RECOMMENDED, "JSONArgsRecommended", "json-args-recommended", false, "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MAINTAINER_DEPRECATED, "MaintainerDeprecated", "maintainer-deprecated", false, "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UNDEFINED_ARG_IN_FROM, "UndefinedArgInFrom", "undefined-arg-in-from", false, "FROM command must use declared ARGs";
    WORKDIR_RELATIVE_PATH, "WorkdirRelativePath", "workdir-relative-path", false, "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UNDEFINED_VAR, "UndefinedVar", "undefined-var", false, "Variables should be defined before their use";
    MULTIPLE_INSTRUCTIONS_DISALLOWED, "MultipleInstructionsDisallowed", "multiple-instructions-disallowed", false, "Multiple instructions of the same type should not be used in the same stage";
    LEGACY_KEY_VALUE_FORMAT, "LegacyKeyValueFormat", "legacy-key-value-format", false, "Legacy key/value format with whitespace separator should not be used";
    INVALID_BASE_IMAGE_PLATFORM, "InvalidBaseImagePlatform", "", false, "Base image platform does not match expected target platform";
    REDUNDANT_TARGET_PLATFORM, "RedundantTargetPlatform", "redundant-target-platform", false, "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SECRETS_USED_IN_ARG_OR_ENV, "SecretsUsedInArgOrEnv", "secrets-used-in-arg-or-env", false, "Sensitive data should not be used in the ARG or ENV commands";
    INVALID_DEFAULT_ARG_IN_FROM, "InvalidDefaultArgInFrom", "invalid-default-arg-in-from", false, "Default value for global ARG results in an empty or invalid base image name";
    FROM_PLATFORM_FLAG_CONST_DISALLOWED, "FromPlatformFlagConstDisallowed", "from-platform-flag-const-disallowed", false, "FROM --platform flag should not use a constant value";
    COPY_IGNORED_FILE, "CopyIgnoredFile", "copy-ignored-file", false, "Attempting to Copy file that is excluded by .dockerignore";
    INVALID_DEFINITION_DESCRIPTION, "InvalidDefinitionDescription", "invalid-definition-description", true, "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    EXPOSE_PROTO_CASING, "ExposeProtoCasing", "expose-proto-casing", false, "Protocol in EXPOSE instruction should be lowercase";
    EXPOSE_INVALID_FORMAT, "ExposeInvalidFormat", "expose-invalid-format", false, "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}

/// The words of findings.
pub(crate) mod say {
    use super::quote;

    pub(crate) fn stage_name_casing(name: &str) -> String {
        format!("Stage name '{name}' should be lowercase")
    }
    pub(crate) fn from_as_casing(from: &str, as_word: &str) -> String {
        format!("'{as_word}' and '{from}' keywords' casing do not match")
    }
    pub(crate) fn instruction_casing(keyword: &str, casing: &str) -> String {
        format!("Command '{keyword}' should match the case of the command majority ({casing})")
    }
    pub(crate) fn duplicate_stage(name: &str) -> String {
        format!("Duplicate stage name {}, stage names should be unique", quote(name))
    }
    pub(crate) fn reserved_stage(name: &str) -> String {
        format!("Stage name should not use the same name as reserved stage {}", quote(name))
    }
    pub(crate) fn json_args(keyword: &str) -> String {
        format!("JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals")
    }
    pub(crate) fn undefined_from_arg(name: &str, nearest: Option<&str>) -> String {
        let hint = nearest.map(|n| format!(" (did you mean {n}?)")).unwrap_or_default();
        format!("FROM argument '{name}' is not declared{hint}")
    }
    pub(crate) fn undefined_var(name: &str, nearest: Option<&str>) -> String {
        let hint = nearest.map(|n| format!(" (did you mean ${n}?)")).unwrap_or_default();
        format!("Usage of undefined variable '${name}'{hint}")
    }
    pub(crate) fn relative_workdir(path: &str) -> String {
        format!("Relative workdir {} can have unexpected results if the base image changes", quote(path))
    }
    pub(crate) fn multiple(keyword: &str) -> String {
        format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        )
    }
    pub(crate) fn legacy_pair(keyword: &str) -> String {
        format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format")
    }
    pub(crate) fn base_platform(image: &str, expected: &str, actual: &str) -> String {
        let (actual, expected) = (quote(actual), quote(expected));
        format!("Base image {image} was pulled with platform {actual}, expected {expected} for current build")
    }
    pub(crate) fn redundant_platform(written: &str) -> String {
        format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior")
    }
    pub(crate) fn secret(instruction: &str, key: &str) -> String {
        format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", quote(key))
    }
    pub(crate) fn bad_default_base(base: &str) -> String {
        format!("Default value for ARG {base} results in empty or invalid base image name")
    }
    pub(crate) fn constant_platform(platform: &str) -> String {
        format!("FROM --platform flag should not use constant value {}", quote(platform))
    }
    pub(crate) fn ignored_file(verb: &str, path: &str) -> String {
        format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(path))
    }
    pub(crate) fn bad_description(instruction: &str, name: &str) -> String {
        format!("Comment for {instruction} should follow the format: `# {name} <description>`")
    }
    pub(crate) fn proto_casing(port: &str) -> String {
        format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase")
    }
    pub(crate) fn port_mapping(port: &str) -> String {
        format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'")
    }
}
