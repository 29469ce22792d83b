//! Columns aligned with spaces, as the texts of subrequests have them.

/// Writes rows whose cells are aligned; the last cell of a row is not padded. `gap` spaces stand between columns.
///
/// Like Go's `tabwriter`, a column ends where a row has no cell that is followed by another.
pub(crate) fn render(rows: &[Vec<String>], gap: usize) -> String {
    let width = |text: &str| text.chars().count();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (c, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if c + 1 == row.len() {
                break;
            }
            // The column's block: neighbouring rows that have a cell here which is followed by another.
            let in_block = |r: &&Vec<String>| r.len() > c + 1;
            let above = rows[..i].iter().rev().take_while(in_block);
            let below = rows[i..].iter().take_while(in_block);
            let widest = above.chain(below).map(|r| width(&r[c])).max().unwrap_or(0);
            let padded = widest + gap;
            out.extend(std::iter::repeat_n(' ', padded - width(cell)));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned() {
        let rows = [vec!["A".to_owned(), "B".into()], vec!["long".into(), String::new()]];
        assert_eq!(render(&rows, 1), "A    B\nlong \n");
    }
}
