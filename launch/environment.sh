# Sourced by the scripts beside it: a virtual environment that has the given requirements.
# Usage: . launch/environment.sh REQUIREMENTS_FILE...
# PYTHON chooses the interpreter (default: python3).

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
  echo "isara_jax needs Python 3.11 to 3.13; '$python' is $("$python" --version 2>&1)." \
    "Set PYTHON to one of these, e.g. PYTHON=python3.12 $0" >&2
  exit 1
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear .venv >/dev/null 2>&1 || { # no ensurepip, as on Debian and Colab
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check pip
  }
fi
for file in "$@"; do
  # Installed once for each content of the file; a failed install leaves no stamp behind.
  stamp=.venv/installed-$(basename "$file").$(cksum <"$file" | cut -d' ' -f1)
  if [ ! -e "$stamp" ]; then
    echo "Installing $file into .venv (once; a minute or two)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
    touch "$stamp"
  fi
done
