//! The nearest right word for a wrong one.

/// Returns the nearest of the options if it is less than three edits away, in the case in which the word is written.
/// None if the word is itself an option: then something else is wrong.
///
/// Of several that are equally near, the first wins.
pub(crate) fn nearest<S: AsRef<str>>(word: &str, options: &[S], case_sensitive: bool) -> Option<String> {
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let folded = fold(word);
    let mut best: Option<String> = None;
    let mut least = 3;
    for option in options {
        let option = fold(option.as_ref());
        if option == folded {
            return None;
        }
        let distance = edits(&folded, &option, least);
        if distance < least {
            least = distance;
            best = Some(option).filter(|o| !o.is_empty());
        }
    }
    let best = best?;
    Some(if case_sensitive || word == word.to_lowercase() {
        best
    } else if word == word.to_uppercase() {
        best.to_uppercase()
    } else {
        best
    })
}

/// Puts the options first that a slip of the fingers turns into the word: two neighbours exchanged.
///
/// For lists whose order means nothing: of several that are equally near, [`nearest`] takes the first.
pub(crate) fn by_likeness<'a>(word: &str, options: &[&'a str]) -> Vec<&'a str> {
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.to_lowercase().chars().collect();
        letters.sort_unstable();
        letters
    };
    let letters = sorted(word);
    let first = word.chars().next().map(|c| c.to_ascii_lowercase());
    let mut options = options.to_vec();
    options.sort_by_key(|option| {
        let begins_other = option.chars().next().map(|c| c.to_ascii_lowercase()) != first;
        (sorted(option) != letters, begins_other)
    });
    options
}

/// Adds the nearest word to a message.
pub(crate) fn with_nearest<S: AsRef<str>>(message: String, word: &str, options: &[S], case_sensitive: bool) -> String {
    match nearest(word, options, case_sensitive) {
        Some(match_) => format!("{message} (did you mean {match_}?)"),
        None => message,
    }
}

/// Counts insertions, deletions and replacements, up to a limit.
fn edits(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) >= limit {
        return limit;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        let mut least = row[0];
        for (j, y) in b.iter().enumerate() {
            let cost = if x == y { diagonal } else { diagonal.min(row[j]).min(row[j + 1]) + 1 };
            diagonal = row[j + 1];
            row[j + 1] = cost;
            least = least.min(cost);
        }
        if least >= limit {
            return limit;
        }
    }
    row[b.len()].min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_in_the_case_of_the_wrong_one() {
        let all = ["RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(nearest("RNU", &all, false).as_deref(), Some("RUN"));
        assert_eq!(nearest("cpoy", &all, false).as_deref(), Some("copy"));
        assert_eq!(nearest("RUN", &all, false), None);
        assert_eq!(nearest("nothing", &all, false), None);
        assert_eq!(nearest("mont", &["mount"], true).as_deref(), Some("mount"));
        let keywords = by_likeness("RNU", &["ENV", "RUN"]);
        assert_eq!(nearest("RNU", &keywords, false).as_deref(), Some("RUN"));
    }
}
