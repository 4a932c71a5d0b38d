//! Reads the command line of a program, and writes its man pages and shell completions out of it.
//!
//! Each program has a subcommand for it, `generate DIRECTORY`, so that whoever builds the programs
//! has the files without installing anything. Neither the help nor the files themselves name it:
//! it is for those who package the program. The crate depends on no other one of the workspace.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command, Parser, builder::Resettable, value_parser};
use clap_complete::Shell;

/// What a program was called for.
#[derive(Debug)]
pub enum Call<Cli> {
    /// What it is made for.
    Program(Cli),
    /// To write its man pages and completions.
    Generate(Box<Files>),
}

/// The files of a program.
#[derive(Debug)]
pub struct Files {
    program: Command,
    directory: PathBuf,
}

/// Reads the command line of this process. As clap does, it prints the help, the version or a
/// mistake, and ends the process.
#[must_use]
pub fn parse<Cli: Parser>() -> Call<Cli> {
    try_parse(env::args_os()).unwrap_or_else(|error| error.exit())
}

fn try_parse<Cli: Parser>(
    words: impl IntoIterator<Item = OsString>,
) -> Result<Call<Cli>, clap::Error> {
    const GENERATE: &str = "generate";
    const DIRECTORY: &str = "DIRECTORY";
    let directory = Arg::new(DIRECTORY)
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("A directory as /usr/share is one");
    let generate = Command::new(GENERATE)
        .about("Writes man pages to man/man1, and completions to where bash, zsh and fish look for them")
        .hide(true)
        .arg(directory);
    let mut program = without_empty_variables(command::<Cli>(), &|name| env::var_os(name));
    program = program.subcommand(generate);
    let matches = program.try_get_matches_from_mut(words)?;
    let directory = matches
        .subcommand_matches(GENERATE)
        .and_then(|matches| matches.get_one::<PathBuf>(DIRECTORY));
    match directory {
        Some(directory) => Ok(Call::Generate(Box::new(Files {
            program: command::<Cli>(),
            directory: directory.clone(),
        }))),
        None => Cli::from_arg_matches(&matches)
            .map(Call::Program)
            .map_err(|error| error.format(&mut program)),
    }
}

/// The command line of a program with what all of them have in common: `-v` tells the version, too,
/// and of an option that is given twice the last one counts. Scripts may have both from the programs
/// of the Go project.
fn command<Cli: Parser>() -> Command {
    let version = Arg::new("version")
        .short('V')
        .visible_short_alias('v')
        .long("version")
        .action(ArgAction::Version)
        .help("Print version");
    Cli::command()
        .args_override_self(true)
        .disable_version_flag(true)
        .arg(version)
}

/// A variable that is empty is as one that is not set: there is no other way to unset it in a file of
/// variables, or for one command.
fn without_empty_variables(
    command: Command,
    value: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Command {
    let is_empty = |name: &OsStr| value(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(|command| without_empty_variables(command, value))
}

impl Files {
    /// Writes them.
    ///
    /// # Errors
    /// Name the file or directory that cannot be written.
    pub fn write(&self) -> io::Result<()> {
        generate(&self.program, &self.directory)
    }
}

fn generate(program: &Command, share: &Path) -> io::Result<()> {
    let name = program.get_name().to_owned();
    let man = directory(&share.join("man/man1"))?;
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
        let file = directory(&share.join(dir))?.join(file);
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

    /// Does something.
    #[derive(Debug, Parser)]
    #[command(name = "program", version = "1.2.3")]
    enum Cli {
        /// Works.
        Work {
            #[arg(long, env = "CLI_FILES_PLACE", default_value = "here")]
            place: String,
        },
    }

    fn call(words: &[&str]) -> Result<Call<Cli>, clap::Error> {
        try_parse(["program"].iter().chain(words).map(OsString::from))
    }

    fn files(directory: &Path) -> Box<Files> {
        let words = ["generate", directory.to_str().unwrap()];
        match call(&words).unwrap() {
            Call::Generate(files) => files,
            Call::Program(cli) => panic!("{cli:?}"),
        }
    }

    #[test]
    fn a_program_is_called_for_its_work_or_for_its_files() {
        assert!(matches!(
            call(&["work"]),
            Ok(Call::Program(Cli::Work { .. }))
        ));
        assert!(call(&["generate"]).is_err());
        assert!(call(&["play"]).is_err());
        let help = call(&["--help"]).unwrap_err().to_string();
        assert!(
            help.contains("work") && !help.contains("generate"),
            "{help}"
        );
    }

    #[test]
    fn the_version_has_two_letters() {
        for flag in ["-V", "-v", "--version"] {
            let told = call(&[flag]).unwrap_err();
            assert_eq!(told.exit_code(), 0, "{flag}");
            assert_eq!(told.to_string(), "program 1.2.3\n", "{flag}");
        }
    }

    #[test]
    fn the_last_of_two_counts() {
        match call(&["work", "--place", "a", "--place", "b"]) {
            Ok(Call::Program(Cli::Work { place })) => assert_eq!(place, "b"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_variable_that_is_empty_is_as_none() {
        for (value, is_read) in [(None, true), (Some(""), false), (Some("there"), true)] {
            let program = without_empty_variables(command::<Cli>(), &|name| {
                assert_eq!(name, "CLI_FILES_PLACE");
                value.map(OsString::from)
            });
            let work = program.find_subcommand("work").unwrap();
            let mut arguments = work.get_arguments();
            let place = arguments.find(|arg| arg.get_id() == "place").unwrap();
            assert_eq!(place.get_env().is_some(), is_read, "{value:?}");
        }
    }

    #[test]
    fn each_shell_and_man_have_their_files() {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path()).write().unwrap();
        for file in [
            "man/man1/program.1",
            "man/man1/program-work.1",
            "bash-completion/completions/program",
            "zsh/site-functions/_program",
            "fish/vendor_completions.d/program.fish",
        ] {
            let text = fs::read_to_string(dir.path().join(file)).unwrap();
            assert!(text.contains("work"), "{file}");
            assert!(!text.contains("generate"), "{file}: {text}");
        }
        assert!(!dir.path().join("man/man1/program-generate.1").exists());

        let error = files(&dir.path().join("man/man1/program.1")).write();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("program.1/man"), "{error}");
    }
}
