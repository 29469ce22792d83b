//! The command `bud`.

fn main() -> std::process::ExitCode {
    bud::main()
}
