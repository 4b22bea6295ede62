"""A virtual environment with what requirements.txt lists, made on first use; the calling program runs again in it."""
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
DEFAULT = HERE.parents[1] / ".cache/peers-venv"
REQUIREMENTS = HERE / "requirements.txt"


def _pip(python, *what):
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else (done.stdout.strip().splitlines() or ["pip failed"])[-1]


def _install(venv):
    """Installs what requirements.txt lists; where that fails, line by line, so that the other peers still run."""
    python = venv / "bin/python3"
    if not python.exists():
        print(f"making {venv}", file=sys.stderr)
        if subprocess.run([sys.executable, "-m", "venv", venv]).returncode:
            sys.exit("no virtual environment: on Debian, apt-get install python3-venv")
    stamp = venv / "requirements.installed"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return
    print("installing PyTorch, ONNX Runtime and OpenVINO from PyPI: 3 GB of download, 6 GB on disk", file=sys.stderr)
    if _pip(python, "-r", REQUIREMENTS) is None:
        stamp.write_text(REQUIREMENTS.read_text())
        return
    for line in REQUIREMENTS.read_text().splitlines():
        if line and not line.startswith("#") and (error := _pip(python, line)):
            print(f"NOT INSTALLED {line}: {error}", file=sys.stderr)


def enter(venv=None):
    """Returns inside the environment; outside of it, installs it and replaces the process by the same program in it."""
    venv = pathlib.Path(venv or os.environ.get("FOVEA_PEERS_VENV") or DEFAULT).absolute()
    slowing = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & set(os.environ)  # for old OpenBLAS; they slow a current one
    inside = pathlib.Path(sys.prefix).resolve() == venv.resolve()
    if inside and not slowing:
        return
    if not inside:
        _install(venv)
    environment = {name: value for name, value in os.environ.items() if name not in slowing}
    # LLVM's OpenMP (fovea built by clang) keeps idle workers spinning for 200 ms, in which a peer would be measured.
    environment.setdefault("KMP_BLOCKTIME", "10")
    python = str(venv / "bin/python3")
    os.execve(python, [python, *sys.argv], environment)
