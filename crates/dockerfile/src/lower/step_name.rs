//! Names of steps in the progress: `[stage 2/5] RUN …`.

use super::env::Env;
use super::platform::Lowering;
use crate::shell::Vars;
use bud_image::Platform;

impl Lowering<'_> {
    /// Names a step in the progress: `[stage 2/5] RUN …`.
    pub(crate) fn step_name(
        &mut self,
        index: usize,
        text: &str,
        with_platform: bool,
        platform: Option<&Platform>,
        env: Option<&Env>,
    ) -> String {
        let stage = &mut self.stages.list[index];
        if stage.command_total == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        if with_platform && let Some(platform) = platform {
            let target = env.and_then(platform_of_env);
            out.push_str(&format!("{platform}{} ", target.map_or_else(String::new, |t| arrow(platform, t))));
        }
        if !stage.shown.is_empty() {
            out.push_str(&stage.shown);
            out.push(' ');
        }
        stage.command_index += 1;
        let width = stage.command_total.to_string().len();
        out.push_str(&format!("{:width$}/{}] ", stage.command_index, stage.command_total));
        if stage.in_trigger {
            out.push_str("ONBUILD ");
        }
        out + text
    }
}

/// The platform that a cross-compiling stage builds for, by its arguments.
fn platform_of_env(env: &Env) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut found = false;
    for name in env.names() {
        let value = env.get(name).unwrap_or_default();
        match name {
            "TARGETPLATFORM" => {
                if let Ok(platform) = Platform::parse(value) {
                    return Some(platform);
                }
                continue;
            }
            "TARGETOS" => value.clone_into(&mut platform.os),
            "TARGETARCH" => value.clone_into(&mut platform.architecture),
            "TARGETVARIANT" => value.clone_into(&mut platform.variant),
            _ => continue,
        }
        found = true;
    }
    found.then_some(platform)
}

/// Shows that a stage builds for another platform: `->arm64`.
fn arrow(base: &Platform, mut target: Platform) -> String {
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = target.normalize();
    if target.os != base.os {
        return format!("->{target}");
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    let slash = if target.variant.is_empty() { "" } else { "/" };
    format!("->{}{slash}{}", target.architecture, target.variant)
}
