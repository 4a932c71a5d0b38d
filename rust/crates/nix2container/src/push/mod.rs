//! `nix2container push`.
//!
//! * `plan`: what goes where, by the archives alone.
//! * `cache_check`: whether the store paths can be had elsewhere.

mod cache_check;
mod plan;

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use image_loader::Progress as _;
use nix_image::{Descriptor, Reference};
use plan::Plan;
use reqwest::Url;

use crate::{
    progress::Progress,
    registry::{Access, Registry, RegistryArgs, Stored},
    runtime::wait,
};

#[derive(Args)]
pub(crate) struct PushArgs {
    /// Where to push to, instead of the name in the archive.
    #[arg(long, value_name = "REFERENCE", value_parser = Reference::parse)]
    r#ref: Option<Reference>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Write the digest of what was pushed into this file.
    #[arg(long, value_name = "FILE")]
    digest_file: Option<PathBuf>,
    /// Say what would be transferred, and transfer nothing.
    #[arg(long)]
    dry_run: bool,
    /// Warn of store paths that none of these binary caches has; may be repeated.
    #[arg(long, value_name = "URL", value_parser = cache_check::parse_url)]
    check_cache: Vec<Url>,
    /// The archive: OCI or `docker save`, plain, gzip or zstd. Several, each of another platform,
    /// become one image.
    #[arg(value_name = "ARCHIVE", required = true)]
    archives: Vec<PathBuf>,
}

pub(crate) fn run(args: &PushArgs, progress: &Progress) -> anyhow::Result<()> {
    let mut archives = Vec::new();
    for path in &args.archives {
        archives.push(image_loader::open(path)?);
    }
    let plan = plan::plan(&mut archives, args.r#ref.as_ref())?;
    wait(async {
        if !args.check_cache.is_empty() {
            cache_check::warn(&args.check_cache, &plan, &args.registry).await?;
        }
        let registry = Registry::connect(&plan.destination, Access::Push, &args.registry).await?;
        if args.dry_run {
            return tell(&registry, &plan).await;
        }
        push(&registry, &mut archives, &plan, progress).await?;
        let digest = plan.root().digest;
        if let Some(file) = &args.digest_file {
            fs::write(file, digest.to_string()).with_context(|| {
                format!(
                    "{digest} is pushed, but cannot be written to {}",
                    file.display()
                )
            })?;
        }
        tracing::info!("pushed {}", plan.destination);
        println!("{}", plan.destination.with_digest(digest));
        Ok(())
    })
}

/// Brings all blobs to the registry, then the manifests, then the index that lists them: at no
/// time there is something that refers to what is missing.
async fn push<R: std::io::Read + std::io::Seek>(
    registry: &Registry,
    archives: &mut [nix_image::archive::Archive<R>],
    plan: &Plan,
    progress: &Progress,
) -> anyhow::Result<()> {
    for planned in &plan.blobs {
        let blob = &planned.descriptor;
        let task = progress.begin(blob.digest.to_string(), blob.size);
        if registry.has_blob(blob.digest).await? {
            task.end("exists already");
            continue;
        }
        let Some(archive) = archives.get_mut(planned.archive) else {
            bail!("{} is in no archive", blob.digest);
        };
        let from = plan.mount_source(blob);
        match registry.upload(archive, blob, from, &*task).await? {
            Stored::Transferred => task.end("transferred"),
            Stored::Mounted => task.end("mounted"),
        }
    }
    for (name, descriptor, json) in plan.documents() {
        registry.put_manifest(&name, descriptor, json).await?;
    }
    Ok(())
}

/// Says what a push would do.
async fn tell(registry: &Registry, plan: &Plan) -> anyhow::Result<()> {
    let line = |does: &str, descriptor: &Descriptor| {
        println!("{does} {} {} bytes", descriptor.digest, descriptor.size);
    };
    for planned in &plan.blobs {
        let blob = &planned.descriptor;
        match registry.has_blob(blob.digest).await? {
            true => line("exists already:", blob),
            false => line("would be transferred:", blob),
        }
    }
    for (_, descriptor, _) in plan.documents() {
        line("would be stored:", descriptor);
    }
    println!(
        "would be pushed: {}",
        plan.destination.with_digest(plan.root().digest)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn flags_are_those_of_the_go_project() {
        let parse =
            |flags: &[&str]| Cli::try_parse_from([&["nix2container", "push"], flags].concat());
        let cli = parse(&[
            "--plain-http",
            "--ref",
            "localhost:5000/a",
            "x.tar",
            "y.tar",
        ])
        .unwrap();
        let Command::Push(args) = cli.command else {
            panic!("not push");
        };
        assert_eq!(args.r#ref.unwrap().to_string(), "localhost:5000/a:latest");
        assert_eq!(args.archives.len(), 2);
        for (flag, plain_http) in [
            (&["--plain-http"][..], true),
            (&["--plain-http=true"], true),
            (&["--plain-http=T"], true),
            (&["--plain-http=1"], true),
            (&["--plain-http=false"], false),
            (&["--plain-http=0"], false),
            (&[], false),
        ] {
            let Command::Push(args) = parse(&[flag, &["x.tar"]].concat()).unwrap().command else {
                panic!("not push");
            };
            assert_eq!(args.registry.plain_http, plain_http, "{flag:?}");
            assert_eq!(args.archives.len(), 1, "{flag:?}");
        }
        for flags in [
            &[][..],
            &["--ref", "A", "x"],
            &["--plain-http=maybe", "x"],
            &["--check-cache", "file:///c", "x"],
            &["--timeout", "0", "x"],
        ] {
            assert!(parse(flags).is_err(), "{flags:?}");
        }
    }
}
