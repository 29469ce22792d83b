//! The command `build-using-dockerfile`: `bud` by its full name.

fn main() -> std::process::ExitCode {
    bud::main()
}
