//! `--call`: a question to the front end instead of a build.

use anyhow::{Result, bail};

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// The answer itself.
    Json,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Call {
    /// Its id (`frontend.lint`).
    pub request: String,
    /// How the answer is printed.
    pub format: Format,
    /// The exit code is 0 whatever the answer says.
    pub ignore_status: bool,
}

impl Call {
    /// Parses `METHOD[,format=text|json][,ignorestatus]`; none for `build`.
    ///
    /// # Errors
    /// A method or an option that there isn't.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let mut parts = text.split(',');
        let method = parts.next().unwrap_or_default();
        let request = match method {
            "build" | "" => String::new(),
            "check" | "lint" => "frontend.lint".to_owned(),
            "outline" | "targets" | "subrequests.describe" => format!("frontend.{method}"),
            // What another front end may answer.
            other if other.starts_with("frontend.") => other.to_owned(),
            other => bail!("--call {other}: there are build, check, outline, targets and subrequests.describe"),
        };
        let mut call = Self { request, ..Self::default() };
        for part in parts {
            match part.split_once('=').unwrap_or((part, "")) {
                ("format", "text") => call.format = Format::Text,
                ("format", "json") => call.format = Format::Json,
                ("ignorestatus", "" | "true" | "1") => call.ignore_status = true,
                ("ignorestatus", "false" | "0") => call.ignore_status = false,
                _ => bail!("--call {text}: `{part}` is neither format=text, format=json nor ignorestatus"),
            }
        }
        Ok(Some(call).filter(|call| !call.request.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_call() {
        assert_eq!(Call::parse("build").unwrap(), None);
        let call = Call::parse("check,format=json,ignorestatus=true").unwrap().unwrap();
        assert_eq!((call.request.as_str(), call.format, call.ignore_status), ("frontend.lint", Format::Json, true));
        assert_eq!(Call::parse("outline").unwrap().unwrap().request, "frontend.outline");
        assert!(Call::parse("targts").unwrap_err().to_string().contains("targets"));
        assert!(Call::parse("check,format=yaml").is_err());
    }
}
