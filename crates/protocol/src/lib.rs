//! BuildKit's gRPC API as Rust types: generated messages and services, the LLB encoding, error details.
//!
//! The `.proto` texts are in `proto/`; `cargo run -p bud-protocol-codegen` writes `src/gen` after one was edited.

#![forbid(unsafe_code)]

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    pub mod pb {
        include!("gen/pb.rs");
    }
    pub mod google {
        pub mod rpc {
            include!("gen/google.rpc.rs");
        }
    }
    pub mod fsutil {
        pub mod types {
            include!("gen/fsutil.types.rs");
        }
    }
    pub mod errdefs {
        include!("gen/errdefs.rs");
    }
    pub mod grpc {
        pub mod health {
            pub mod v1 {
                include!("gen/grpc.health.v1.rs");
            }
        }
    }
    pub mod containerd {
        pub mod services {
            pub mod content {
                pub mod v1 {
                    include!("gen/containerd.services.content.v1.rs");
                }
            }
        }
    }
    pub mod opentelemetry {
        pub mod proto {
            pub mod collector {
                pub mod trace {
                    pub mod v1 {
                        include!("gen/opentelemetry.proto.collector.trace.v1.rs");
                    }
                }
            }
        }
    }
    pub mod bud {
        pub mod v1 {
            include!("gen/bud.v1.rs");
        }
    }
    pub mod moby {
        pub mod buildkit {
            pub mod v1 {
                include!("gen/moby.buildkit.v1.rs");
                pub mod types {
                    include!("gen/moby.buildkit.v1.types.rs");
                }
                pub mod apicaps {
                    include!("gen/moby.buildkit.v1.apicaps.rs");
                }
                pub mod frontend {
                    include!("gen/moby.buildkit.v1.frontend.rs");
                }
                pub mod sourcepolicy {
                    include!("gen/moby.buildkit.v1.sourcepolicy.rs");
                }
            }
            pub mod secrets {
                pub mod v1 {
                    include!("gen/moby.buildkit.secrets.v1.rs");
                }
            }
        }
        pub mod filesync {
            pub mod v1 {
                include!("gen/moby.filesync.v1.rs");
            }
        }
        pub mod sshforward {
            pub mod v1 {
                include!("gen/moby.sshforward.v1.rs");
            }
        }
        pub mod upload {
            pub mod v1 {
                include!("gen/moby.upload.v1.rs");
            }
        }
        pub mod exporter {
            pub mod v1 {
                include!("gen/moby.exporter.v1.rs");
            }
        }
    }
}

pub use generated::bud::v1 as bud;
pub use generated::containerd::services::content::v1 as content;
pub use generated::errdefs;
pub use generated::fsutil::types as fsutil;
pub use generated::google::rpc;
pub use generated::grpc::health::v1 as health;
pub use generated::moby::buildkit::secrets::v1 as secrets;
pub use generated::moby::buildkit::v1 as control;
pub use generated::moby::buildkit::v1::apicaps;
pub use generated::moby::buildkit::v1::frontend as gateway;
pub use generated::moby::buildkit::v1::sourcepolicy;
pub use generated::moby::buildkit::v1::types;
pub use generated::moby::exporter::v1 as session_exporter;
pub use generated::moby::filesync::v1 as filesync;
pub use generated::moby::sshforward::v1 as sshforward;
pub use generated::moby::upload::v1 as upload;
pub use generated::opentelemetry::proto::collector::trace::v1 as trace;
pub use generated::pb;

pub mod errors;
pub mod llb;
