//! Columns aligned with spaces, as the texts of subrequests have them.

/// Writes rows whose cells are aligned; the last cell of a row is not padded. `gap` spaces stand between columns.
///
/// Like Go's `tabwriter`, a column ends where a row has no cell that is followed by another.
/// Also as there, a tab within a cell begins another cell, and a newline another row: values of arguments have them.
pub(crate) fn render(rows: &[Vec<String>], gap: usize) -> String {
    let is_tab = |c: char| matches!(c, '\t' | '\u{b}');
    let rows: Vec<Vec<&str>> = rows
        .iter()
        .flat_map(|row| {
            let mut lines: Vec<Vec<&str>> = vec![Vec::new()];
            for cell in row {
                for (i, line) in cell.split(['\n', '\u{c}']).enumerate() {
                    if i > 0 {
                        lines.push(Vec::new());
                    }
                    // There is a last line from the beginning on.
                    if let Some(last) = lines.last_mut() {
                        last.extend(line.split(is_tab));
                    }
                }
            }
            lines
        })
        .collect();
    let width = |text: &str| text.chars().count();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (c, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if c + 1 == row.len() {
                break;
            }
            // The column's block: neighbouring rows that have a cell here which is followed by another.
            let in_block = |r: &&Vec<&str>| r.len() > c + 1;
            let above = rows[..i].iter().rev().take_while(in_block);
            let below = rows[i..].iter().take_while(in_block);
            let widest = above.chain(below).map(|r| width(r[c])).max().unwrap_or(0);
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

    #[test]
    fn a_tab_in_a_cell_begins_another() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["ARG", "VALUE", "TEXT"]), row(["A", "noninteractive", ""]), row(["BCDEF", "\tx \ty", ""])];
        assert_eq!(
            render(&rows, 3),
            "ARG     VALUE            TEXT\nA       noninteractive   \nBCDEF                    x    y   \n"
        );
    }
}
