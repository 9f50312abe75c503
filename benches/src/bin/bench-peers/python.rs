//! A Python for the other libraries, and the models that are made with it, both kept in a cache.
//!
//! The cache is `DRIVETRAIN_BENCH_CACHE`, else `~/.cache/drivetrain-benches`. What is made gets its name
//! when it is complete, so that an interrupted run leaves nothing that looks whole.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The virtual environment and the cache it lies in.
#[derive(Debug)]
pub(crate) struct Python {
    cache: PathBuf,
    folder: PathBuf,
    scripts: PathBuf,
}

impl Python {
    /// The environment with what is needed to make models and to run the yardstick.
    ///
    /// # Errors
    /// There is no Python, or its packages can't be installed.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let cache = cache()?;
        let scripts = root.join("benches/peers");
        let folder = cache.join(format!("python-{}", digest(&[&requirements(&scripts, "base")])?));
        let python = Self { cache, folder, scripts };
        if !python.interpreter().exists() {
            fs::create_dir_all(&python.cache)?;
            let mut make = Command::new("python3");
            run(make.args(["-m", "venv"]).arg(&python.folder)).context("making an environment")?;
        }
        python.install("base")?;
        Ok(python)
    }

    /// Installs what `name` needs, if that is more than the base, once.
    ///
    /// # Errors
    /// It can't be installed.
    pub(crate) fn install(&self, name: &str) -> Result<()> {
        let requirements = requirements(&self.scripts, name);
        if !requirements.exists() {
            return Ok(());
        }
        let done = self.folder.join(format!("installed-{name}-{}", digest(&[&requirements])?));
        if done.exists() {
            return Ok(());
        }
        eprintln!("installing {name}");
        let quietly = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        let mut install = Command::new(self.interpreter());
        install.args(quietly).arg(&requirements);
        if std::env::var_os("CMAKE_ARGS").is_none() {
            // Half of what llama.cpp would build is for images.
            install.env("CMAKE_ARGS", "-DLLAVA_BUILD=OFF");
        }
        run(&mut install)?;
        Ok(fs::write(done, "")?)
    }

    /// The command that runs a script of `benches/peers`.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.interpreter());
        command.arg(self.scripts.join(name)).envs([
            // Everything is on the CPU and on this machine.
            ("CUDA_VISIBLE_DEVICES", ""),
            ("HF_HUB_OFFLINE", "1"),
            ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
            ("TRANSFORMERS_VERBOSITY", "error"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PYTHONWARNINGS", "ignore"),
        ]);
        command
    }

    /// The file or folder with `form` of `model`, made now if it isn't there.
    ///
    /// # Errors
    /// It can't be made.
    pub(crate) fn form(&self, model: &str, form: &str) -> Result<PathBuf> {
        let makers = ["make_model.py", "gguf_form.py"].map(|name| self.scripts.join(name));
        let version = digest(&[&makers[0], &makers[1]])?;
        let folder = self.cache.join("models").join(format!("{model}-{version}"));
        let name = if form.starts_with("gguf") { format!("{form}.gguf") } else { form.to_owned() };
        let out = folder.join(&name);
        if out.exists() {
            return Ok(out);
        }
        let part = folder.join(format!("part-{name}"));
        remove(&part)?;
        fs::create_dir_all(&folder)?;
        let mut make = self.script("make_model.py");
        make.args([model, form]).arg(&part);
        if form != "hf" {
            make.arg("--from").arg(self.form(model, "hf")?);
        }
        eprintln!("making {model} {form}");
        run(&mut make)?;
        fs::rename(&part, &out)?;
        Ok(out)
    }

    /// The folder for what runners say on standard error.
    pub(crate) fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }

    /// The version of the interpreter.
    pub(crate) fn version(&self) -> String {
        let out = Command::new(self.interpreter()).arg("--version").output();
        let text = out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
        text.unwrap_or_default()
    }

    fn interpreter(&self) -> PathBuf {
        self.folder.join("bin/python")
    }
}

fn requirements(scripts: &Path, name: &str) -> PathBuf {
    scripts.join("requirements").join(format!("{name}.txt"))
}

fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DRIVETRAIN_BENCH_CACHE") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").context("no home folder: set DRIVETRAIN_BENCH_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/drivetrain-benches"))
}

fn digest(files: &[&Path]) -> Result<String> {
    let mut hash = DefaultHasher::new();
    for file in files {
        let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        text.hash(&mut hash);
    }
    Ok(format!("{:016x}", hash.finish()))
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?;
    } else if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Runs a command; the error holds the last lines that it said.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} could not be started"))?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    ensure!(last.is_some(), "{program} failed: {}", out.status);
    eprintln!("{said}");
    bail!("{}", last.unwrap_or_default().trim().chars().take(300).collect::<String>())
}
