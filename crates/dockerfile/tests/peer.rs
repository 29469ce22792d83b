//! The stage graph compared with that of `dockerfile-parser` over real files.

#[path = "conformance/mod.rs"]
#[allow(dead_code)]
mod runner;

use dockerfile_parser::{Dockerfile, StageParent};
use std::path::Path;

#[test]
fn stages_stand_on_the_same_stages() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("BUD_CONFORMANCE")
        .map(Into::into)
        .or_else(|| here.ancestors().map(|dir| dir.join("shared/conformance/dockerfile")).find(|dir| dir.is_dir()));
    let Some(folder) = folder else {
        eprintln!("stages_stand_on_the_same_stages: NOT RUN, the conformance data is not here");
        return;
    };
    let mut compared = 0;
    let mut differ: Vec<String> = Vec::new();
    for record in runner::records(&folder.join("corpus.jsonl.zst")).unwrap().map(Result::unwrap) {
        let bytes = runner::dockerfile(&record);
        let Ok(text) = String::from_utf8(bytes.clone()) else { continue };
        let (Ok(ours), Ok(theirs)) = (bud_dockerfile::program(&bytes), Dockerfile::parse(&text)) else { continue };
        // It has no heredocs, one escape character, and takes names in the case in which they are written.
        let names: Vec<&str> = ours.stages.iter().map(|s| s.name.as_str()).collect();
        let is_plain = |text: &str| text == text.to_lowercase() && !text.contains('$');
        if text.contains("<<") || text.contains("escape=") || !ours.stages.iter().all(|s| is_plain(&s.base)) {
            continue;
        }
        let stages = theirs.stages();
        if stages.stages.len() != ours.stages.len() {
            differ.push(format!(
                "{} {} stages, theirs {}\n{text}",
                record["id"],
                ours.stages.len(),
                stages.stages.len()
            ));
            continue;
        }
        for (their, (index, our)) in stages.iter().zip(ours.stages.iter().enumerate()) {
            let their_name = their.name.clone().unwrap_or_default().to_lowercase();
            if their_name != our.name {
                differ.push(format!("{} {their_name} {}", record["id"], our.name));
            }
            // The nearest earlier stage of that name.
            let parent = names[..index].iter().rposition(|name| !name.is_empty() && *name == our.base);
            let their_parent = match their.parent {
                StageParent::Stage(index) => Some(index),
                _ => None,
            };
            if their_parent != parent {
                differ.push(format!("{} stage {index} {their_parent:?} {parent:?}", record["id"]));
            }
            compared += 1;
        }
    }
    // Two have bases that are no image references, which it gives up on; in one a stage is called scratch.
    assert!(differ.len() <= 3, "{}", differ.join("\n"));
    println!("{compared} stages compared");
    assert!(compared > 1000, "{compared}");
}
