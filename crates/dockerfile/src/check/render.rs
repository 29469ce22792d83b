//! Messages with the line they are about.

use super::{Diagnostic, Severity};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// At most so many messages are shown in full.
const MAX_SHOWN: usize = 50;

pub(super) fn render(diagnostics: &[Diagnostic], filename: &str, text: &str, color: bool) -> String {
    let text = harmless(text);
    let filename = if filename.is_empty() { "Dockerfile" } else { filename };
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for diagnostic in diagnostics.iter().take(MAX_SHOWN) {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Advice => Level::NOTE,
        };
        let mut title = level.primary_title(harmless(&diagnostic.message));
        if let Some(rule) = &diagnostic.rule {
            title = title.id(harmless(rule));
        }
        let mut group = match &diagnostic.span {
            Some(span) => title.element(
                Snippet::source(text.as_str())
                    .path(harmless(filename))
                    .annotation(AnnotationKind::Primary.span(span.clone())),
            ),
            None => Group::with_title(title),
        };
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(harmless(help)));
        }
        out.push_str(&renderer.render(&[group]));
        out.push_str("\n\n");
    }
    if diagnostics.len() > MAX_SHOWN {
        out.push_str(&format!("… and {} more\n", diagnostics.len() - MAX_SHOWN));
    }
    out
}

/// Replaces what a terminal would obey, byte for byte: control characters, and those that change the direction of writing.
fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_bidi = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        // A line's end in DOS form is no more than that.
        if (c.is_control() && !matches!(c, '\n' | '\t')) || is_bidi {
            let shown = if c == '\r' { ' ' } else { '?' };
            out.extend(std::iter::repeat_n(shown, c.len_utf8()));
        } else {
            out.push(c);
        }
    }
    out
}
