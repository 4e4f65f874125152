#!/bin/sh
# Make .venv with the locked packages. Debian's Python comes without venv: that is installed first where it is missing.
set -eu
cd "$(dirname "$0")/../.."
python=$(command -v python3.11 || command -v python3)
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Timonel needs Python 3.11 or newer; $python is older" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    sh services_app/local/install.sh python3-venv
fi
echo "installing Python packages into .venv …"
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
cat >.venv/bin/timonel <<LAUNCHER
#!/bin/sh
exec "$PWD/.venv/bin/python" "$PWD/manage.py" "\$@"
LAUNCHER
chmod 755 .venv/bin/timonel
touch .venv
