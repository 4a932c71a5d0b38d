//! Who a user is at a registry: the files that docker, podman and skopeo log in with, and their
//! credential helpers.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// What Docker Hub is called in files of credentials.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What a helper says that knows nothing of a registry.
const NOT_FOUND: &str = "credentials not found";

/// The name in place of a user's of a helper that gives an identity token.
const TOKEN_USER: &str = "<token>";

/// A login, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) secret: Secret,
    /// A file or a helper, for messages.
    pub(crate) source: String,
}

/// What proves who somebody is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that gives tokens.
    IdentityToken(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
        })
    }
}

/// Looks a login for a repository up where docker, podman and skopeo keep theirs. `None` is to be
/// anonymous.
///
/// # Errors
/// A file that is there cannot be read, or a helper fails.
pub(crate) fn find(domain: &str, repository: &str) -> anyhow::Result<Option<Login>> {
    for path in files(|name| env::var_os(name).map(PathBuf::from)) {
        let named = path.display();
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                bail!(
                    "cannot read the credentials in {named}: {error}: log in again, or name another file by REGISTRY_AUTH_FILE"
                )
            }
        };
        let found = File::parse(&json)
            .and_then(|file| file.find(domain, repository))
            .with_context(|| format!("cannot use the credentials in {named}"))?;
        let login = match found {
            None => None,
            Some(Found::Secret(secret)) => Some(Login {
                secret,
                source: named.to_string(),
            }),
            Some(Found::Helper(name)) => ask_helper(&name, domain)?,
        };
        if login.is_some() {
            return Ok(login);
        }
    }
    Ok(None)
}

/// The files in their order. `variable` looks into the environment.
fn files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    [
        set("REGISTRY_AUTH_FILE"),
        // What a user has named comes before the places where programs look by themselves.
        set("DOCKER_CONFIG").map(|dir| dir.join("config.json")),
        set("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        set("HOME").map(|dir| dir.join(".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What docker calls `config.json`, and podman `auth.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a file says about a repository.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Secret(Secret),
    Helper(String),
}

impl File {
    fn parse(json: &[u8]) -> anyhow::Result<Self> {
        // Of an error its place alone: it may repeat a password.
        serde_json::from_slice(json).map_err(|error| {
            anyhow!(
                "it is not the JSON of a login at line {} column {}: log in again",
                error.line(),
                error.column()
            )
        })
    }

    /// A helper for the registry comes first, then a login in the file, then the helper for all.
    fn find(&self, domain: &str, repository: &str) -> anyhow::Result<Option<Found>> {
        let helper = self
            .cred_helpers
            .iter()
            .find(|(key, _)| hosts_of(domain).any(|host| normal(key) == host));
        if let Some((_, helper)) = helper {
            return Ok(Some(Found::Helper(helper.clone())));
        }
        for name in names(domain, repository) {
            for (key, auth) in &self.auths {
                if normal(key) == name
                    && let Some(secret) = auth.secret(key)?
                {
                    return Ok(Some(Found::Secret(secret)));
                }
            }
        }
        let store = self.creds_store.clone().filter(|name| !name.is_empty());
        Ok(store.map(Found::Helper))
    }
}

impl Auth {
    /// `None` of an entry that only says that a helper has the rest.
    fn secret(&self, key: &str) -> anyhow::Result<Option<Secret>> {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = text(&self.identitytoken) {
            return Ok(Some(Secret::IdentityToken(token)));
        }
        if let Some(auth) = text(&self.auth) {
            let secret = || {
                let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
                // Docker ends passwords with zero bytes at times.
                let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
                Some(Secret::Password {
                    user: user.to_owned(),
                    password: password.to_owned(),
                })
            };
            let secret = secret().ok_or_else(|| {
                anyhow!("`auth` of {key:?} is not the Base64 of `user:password`: log in again")
            })?;
            return Ok(Some(secret));
        }
        Ok(text(&self.username).map(|user| Secret::Password {
            user,
            password: self.password.clone().unwrap_or_default(),
        }))
    }
}

/// The names by which a registry may be called.
fn hosts_of(domain: &str) -> impl Iterator<Item = &str> {
    let others: &[&str] = match domain {
        "docker.io" => &["index.docker.io", "registry-1.docker.io"],
        _ => &[],
    };
    std::iter::once(domain).chain(others.iter().copied())
}

/// The keys that speak of a repository, the most exact first.
fn names(domain: &str, repository: &str) -> Vec<String> {
    let mut paths = vec![repository];
    while let Some((parent, _)) = paths.last().and_then(|path| path.rsplit_once('/')) {
        paths.push(parent);
    }
    let with_path = paths
        .iter()
        .flat_map(|path| hosts_of(domain).map(move |host| format!("{host}/{path}")));
    with_path
        .chain(hosts_of(domain).map(str::to_owned))
        .collect()
}

/// A key without the forms of addresses: docker writes some as URLs, of which the host counts.
fn normal(key: &str) -> &str {
    match key.split_once("://") {
        Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
        None => {
            let key = key.trim_end_matches('/');
            key.strip_suffix("/v1")
                .or_else(|| key.strip_suffix("/v2"))
                .filter(|host| !host.contains('/'))
                .unwrap_or(key)
        }
    }
}

/// Asks `docker-credential-NAME`; `None` if it knows nothing.
fn ask_helper(name: &str, domain: &str) -> anyhow::Result<Option<Login>> {
    let program = format!("docker-credential-{name}");
    if name.contains('/') {
        bail!("{program:?} cannot be a credential helper: correct `credsStore` or `credHelpers`");
    }
    let host = match domain {
        "docker.io" => DOCKER_HUB,
        domain => domain,
    };
    let mut child = Command::new(Path::new(&program))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            anyhow!("cannot start the credential helper {program}: {error}: install it, or remove it from the file of credentials")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says why by its exit.
        let _ = writeln!(stdin, "{host}");
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for the credential helper {program}"))?;
    helper_answer(
        &program,
        output.status.success(),
        &output.stdout,
        &output.stderr,
    )
    .map_err(|reason| anyhow!("the credential helper {program} fails for {host}: {reason}"))
}

fn helper_answer(
    program: &str,
    success: bool,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Option<Login>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let said = [stdout, stderr].map(String::from_utf8_lossy);
    if !success {
        if said.iter().any(|said| said.contains(NOT_FOUND)) {
            return Ok(None);
        }
        let said: Vec<_> = said
            .iter()
            .flat_map(|said| said.split_whitespace())
            .collect();
        let said: String = said.join(" ").chars().take(500).collect();
        return Err(match said.is_empty() {
            true => "it says nothing".to_owned(),
            false => format!("it says {said:?}"),
        });
    }
    let answer: Answer = serde_json::from_slice(stdout)
        .map_err(|_| "its answer is not JSON with `Username` and `Secret`".to_owned())?;
    let secret = match answer.username.as_str() {
        TOKEN_USER => Secret::IdentityToken(answer.secret),
        // Docker's helpers say this, too, of a registry that they do not know.
        "" if answer.secret.is_empty() => return Ok(None),
        _ => Secret::Password {
            user: answer.username,
            password: answer.secret,
        },
    };
    Ok(Some(Login {
        secret,
        source: program.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> Found {
        Found::Secret(Secret::Password {
            user: user.into(),
            password: "p:w".into(),
        })
    }

    fn find(json: &str, domain: &str, repository: &str) -> Option<Found> {
        let file = File::parse(json.as_bytes()).unwrap();
        file.find(domain, repository).unwrap()
    }

    /// A file with logins whose users are numbered.
    fn auths(keys: &[&str]) -> String {
        let auths: serde_json::Map<_, _> = keys
            .iter()
            .enumerate()
            .map(|(n, key)| {
                let auth = STANDARD.encode(format!("{n}:p:w"));
                ((*key).to_owned(), serde_json::json!({ "auth": auth }))
            })
            .collect();
        serde_json::json!({ "auths": auths }).to_string()
    }

    #[test]
    fn files_are_those_of_containers_and_docker_in_this_order() {
        let variable = |name: &str| match name {
            "REGISTRY_AUTH_FILE" => Some("/a".into()),
            "XDG_RUNTIME_DIR" => Some("/run".into()),
            "DOCKER_CONFIG" => Some("/d".into()),
            "HOME" => Some("/h".into()),
            _ => None,
        };
        assert_eq!(
            files(variable),
            [
                "/a",
                "/d/config.json",
                "/run/containers/auth.json",
                "/h/.docker/config.json"
            ]
            .map(PathBuf::from)
        );
        assert!(files(|_| Some(PathBuf::new())).is_empty());
        assert!(files(|_| None).is_empty());
    }

    #[test]
    fn the_longest_key_that_suits_counts() {
        let json = auths(&["r.io", "r.io/a", "r.io/a/b", "r.io:5000", "r.io/ab"]);
        for (domain, repository, user) in [
            ("r.io", "x", Some("0")),
            ("r.io", "a", Some("1")),
            ("r.io", "a/c", Some("1")),
            ("r.io", "a/b", Some("2")),
            ("r.io", "a/b/c", Some("2")),
            ("r.io", "abc", Some("0")),
            ("r.io:5000", "a", Some("3")),
            ("r.io:5001", "a", None),
            ("other.r.io", "a", None),
        ] {
            assert_eq!(
                find(&json, domain, repository),
                user.map(password),
                "{domain}/{repository}"
            );
        }
    }

    #[test]
    fn keys_may_be_addresses() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "index.docker.io/v1/",
            "docker.io",
            "registry-1.docker.io",
        ] {
            assert_eq!(
                find(&auths(&[key]), "docker.io", "library/x"),
                Some(password("0")),
                "{key}"
            );
            assert_eq!(find(&auths(&[key]), "ghcr.io", "x"), None, "{key}");
        }
        for key in ["https://r.io:5000", "http://r.io:5000/v2/", "r.io:5000/"] {
            assert_eq!(
                find(&auths(&[key]), "r.io:5000", "x"),
                Some(password("0")),
                "{key}"
            );
        }
    }

    #[test]
    fn logins_have_several_forms() {
        let secret = |auth: &str| {
            let json = format!(r#"{{"auths":{{"r.io":{auth}}}}}"#);
            File::parse(json.as_bytes()).unwrap().find("r.io", "x")
        };
        assert_eq!(
            secret(r#"{"username":"u","password":"p:w"}"#).unwrap(),
            Some(password("u"))
        );
        assert_eq!(
            secret(r#"{"auth":"dTpwOnc=","identitytoken":"t"}"#).unwrap(),
            Some(Found::Secret(Secret::IdentityToken("t".into())))
        );
        assert_eq!(secret("{}").unwrap(), None);
        assert_eq!(secret(r#"{"auth":""}"#).unwrap(), None);
        for auth in [r#"{"auth":"?"}"#, r#"{"auth":"dXU="}"#] {
            let message = secret(auth).unwrap_err().to_string();
            assert!(message.contains("r.io"), "{message}");
        }
    }

    #[test]
    fn helpers_come_before_and_behind_the_logins_of_the_file() {
        let json = r#"{"auths":{"r.io":{"username":"u","password":"p:w"},"helped.io":{}},
            "credHelpers":{"own.io":"own"},"credsStore":"all"}"#;
        let helper = |name: &str| Some(Found::Helper(name.into()));
        assert_eq!(find(json, "own.io", "x"), helper("own"));
        assert_eq!(find(json, "r.io", "x"), Some(password("u")));
        assert_eq!(find(json, "helped.io", "x"), helper("all"));
        assert_eq!(find(json, "other.io", "x"), helper("all"));
        assert_eq!(find("{}", "other.io", "x"), None);
    }

    #[test]
    fn answers_of_helpers_are_understood() {
        let answer = |success, stdout: &str| {
            helper_answer("docker-credential-x", success, stdout.as_bytes(), b"")
        };
        let login = answer(true, r#"{"ServerURL":"r","Username":"u","Secret":"s"}"#)
            .unwrap()
            .unwrap();
        assert_eq!(login.source, "docker-credential-x");
        assert_eq!(
            answer(true, r#"{"Username":"<token>","Secret":"s"}"#)
                .unwrap()
                .unwrap()
                .secret,
            Secret::IdentityToken("s".into())
        );
        let none = answer(false, "credentials not found in native keychain\n");
        assert_eq!(none.unwrap(), None);
        assert_eq!(
            answer(true, r#"{"Username":"","Secret":""}"#).unwrap(),
            None
        );
        for (success, stdout, reason) in [
            (false, "it is\nlocked", "it is locked"),
            (false, "", "says nothing"),
            (true, "x", "not JSON"),
        ] {
            let message = answer(success, stdout).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_without_its_content() {
        let message = File::parse(br#"{"auths":{"r.io":{"auth":7654321}}}"#)
            .unwrap_err()
            .to_string();
        assert!(message.contains("line 1"), "{message}");
        assert!(!message.contains("7654321"), "{message}");
    }
}
