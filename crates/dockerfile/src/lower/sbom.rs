//! The SBOM scanner: a container that looks at the result, and at what else it is to look at.

use super::context::image_source;
use super::context::parse_image;
use super::env::split;
use super::graph::{Defaults, Exec, ExecMount, Meta, Output};
use super::options::Options;
use super::platform::Lowered;
use super::state::State;
use super::world::{Stop, World};
use crate::fault::Fault;
use crate::frontend::{Attestation, ImageQuery};
use bud_image::{ImageConfig, ImageRef, Platform};
use bud_protocol::pb;
use std::collections::BTreeMap;

const SOURCES: &str = "/run/src/";
const RESULT: &str = "/run/out/";

/// A scanner, ready to be put on a build.
pub(crate) struct Scanner {
    image: String,
    config: ImageConfig,
    args: Vec<String>,
    parameters: BTreeMap<String, String>,
}

impl Scanner {
    /// Finds out about the scanner that was asked for.
    pub(crate) fn find(world: &World<'_>, options: &Options) -> Result<Option<Self>, Stop> {
        let Some((image, parameters)) = &options.sbom else { return Ok(None) };
        let query = ImageQuery {
            reference: image.clone(),
            platform: Some(options.build_platforms[0].clone()),
            resolve_mode: world.opt("image-resolve-mode").unwrap_or_default().to_owned(),
            log_name: String::new(),
            store: None,
        };
        let answer = world.image(query)?.as_ref().map_err(Clone::clone)?;
        let config = parse_image(&answer.config)?;
        let run = &config.config;
        let args: Vec<String> = run.entrypoint.iter().flatten().chain(run.cmd.iter().flatten()).cloned().collect();
        if args.is_empty() {
            return Err(format!("scanner {} does not have cmd", answer.reference).into());
        }
        Ok(Some(Self { image: answer.reference.clone(), config, args, parameters: parameters.clone() }))
    }

    /// Puts the scan of a build's result into its graph.
    pub(crate) fn scan(
        &self,
        lowered: &mut Lowered<'_>,
        options: &Options,
        platform: &str,
    ) -> Result<Attestation, Fault> {
        let lowering = &mut lowered.lowering;
        let target = &lowering.stages.list[lowered.target];
        let core = target.state.output;
        let mut ignore_cache = target.ignores_cache;
        let mut extras: BTreeMap<String, Option<Output>> = BTreeMap::new();
        if target.scan_context {
            extras.insert("context".into(), Some(lowering.context));
        }
        for index in lowering.stages.reachable(lowered.target) {
            let stage = &lowering.stages.list[index];
            if index != lowered.target && stage.scan_stage {
                extras.insert(stage.shown.clone(), stage.state.output);
                ignore_cache |= stage.ignores_cache;
            }
        }
        let reference = ImageRef::parse(&self.image).map_err(|e| Fault::new(e.0))?.or_latest();
        let source = image_source(&reference, Some(&options.build_platforms[0]), "default");
        let mut state = State::source(&mut lowering.graph, source, Meta::default());
        state.set_dir(&self.config.config.working_dir);
        for pair in self.config.config.env.iter().flatten() {
            let (name, value) = split(pair);
            state.env.set(name, value);
        }
        state.env.set("BUILDKIT_SCAN_DESTINATION", RESULT);
        state.env.set("BUILDKIT_SCAN_SOURCE", "/run/src/core/sbom");
        if !extras.is_empty() {
            state.env.set("BUILDKIT_SCAN_SOURCE_EXTRAS", "/run/src/extras");
        }
        for (name, value) in &self.parameters {
            state.env.set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        let seen =
            |dest: String, source: Option<Output>| ExecMount { dest, source, readonly: true, ..ExecMount::default() };
        let mut exec = Exec { has_own_path: true, ..Exec::default() };
        exec.op.meta = Some(pb::Meta {
            args: self.args.clone(),
            env: state.env.to_list(),
            cwd: state.dir.clone(),
            ..pb::Meta::default()
        });
        exec.mounts = vec![
            ExecMount { dest: "/tmp".into(), tmpfs_size: Some(0), ..ExecMount::default() },
            ExecMount { dest: RESULT.into(), ..ExecMount::default() },
            seen(format!("{SOURCES}core/sbom"), core),
        ];
        exec.mounts.extend(extras.iter().map(|(name, source)| seen(format!("{SOURCES}extras/sbom-{name}"), *source)));
        let mut meta = Meta::named(format!("[{platform}] generating sbom using {}", self.image));
        meta.ignore_cache = ignore_cache;
        state.run(&mut lowering.graph, exec, meta);
        // The root is the first output, the result's directory the second.
        let output = state.output.map(|output| Output { index: 1, ..output });
        let caps = &lowering.task.world.request.caps;
        // What has no platform of its own is for this machine here: the scan is no part of the build for the target.
        let machine = Some(Platform::host().normalize());
        let defaults = Defaults { platform: machine, sets_default_path: caps.has("exec.meta.setsdefaultpath") };
        Ok(Attestation {
            predicate_type: "https://spdx.dev/Document".into(),
            definition: lowering.graph.encode(output, &defaults, Some(lowering.task.text))?,
            metadata: BTreeMap::from([
                ("reason".to_owned(), b"sbom".to_vec()),
                ("sbom-core".to_owned(), b"sbom".to_vec()),
            ]),
        })
    }
}
