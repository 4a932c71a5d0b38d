//! Writes the man pages and the shell completions of a program, out of its own command line.
//!
//! Each program has a hidden subcommand for it, `generate DIRECTORY`, so that whoever builds the
//! programs has the files without installing anything. It depends on no other crate of the
//! workspace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_complete::Shell;

/// Where to write the files to.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// A directory as `/usr/share` is one: man pages go to `man/man1`, and completions to where
    /// bash, zsh and fish look for them.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes the files of `program`.
///
/// # Errors
/// Name the file or directory that cannot be written.
pub fn generate(program: &Command, args: &GenerateArgs) -> io::Result<()> {
    let name = program.get_name().to_owned();
    let man = directory(&args.directory.join("man/man1"))?;
    clap_mangen::generate_to(program.clone(), &man).map_err(|error| named(&man, &error))?;
    for (shell, dir, file) in [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (Shell::Zsh, "zsh/site-functions", format!("_{name}")),
        (
            Shell::Fish,
            "fish/vendor_completions.d",
            format!("{name}.fish"),
        ),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut program.clone(), &name, &mut script);
        let file = directory(&args.directory.join(dir))?.join(file);
        fs::write(&file, script).map_err(|error| named(&file, &error))?;
    }
    Ok(())
}

fn directory(path: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(path).map_err(|error| named(path, &error))?;
    Ok(path.to_owned())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot write {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_and_man_have_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let program = || {
            let hidden = Command::new("generate").hide(true);
            Command::new("program")
                .subcommand(Command::new("work").about("Works."))
                .subcommand(hidden)
        };
        let args = GenerateArgs {
            directory: dir.path().to_owned(),
        };
        generate(&program(), &args).unwrap();
        for file in [
            "man/man1/program.1",
            "man/man1/program-work.1",
            "bash-completion/completions/program",
            "zsh/site-functions/_program",
            "fish/vendor_completions.d/program.fish",
        ] {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            assert!(text.contains("work"), "{file}");
        }
        assert!(!dir.path().join("man/man1/program-generate.1").exists());

        let args = GenerateArgs {
            directory: dir.path().join("man/man1/program.1"),
        };
        let error = generate(&program(), &args).unwrap_err().to_string();
        assert!(error.contains("program.1/man"), "{error}");
    }
}
