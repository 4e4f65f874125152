"""A virtual machine with Debian's kernel over this machine's files, for what the own kernel lacks: IPVS.

    python -m tests.planes.guest COMMAND …    runs a command in the guest, from the same directory

The guest sees this machine's / and writes to its own memory alone. It is emulated (accel kvm hangs where machines are
nested), so everything in it takes ten times as long. Needs the packages in PACKAGES; the kernel is downloaded once.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# command -> package
PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "ipvsadm": "ipvsadm"}
DIRECTORY = Path(__file__).parents[2] / "var" / "guest"
# What has to be there before the host's files are, and what is loaded then, because to look for one takes a second.
_FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_MODULES = (
    *("crc32c_generic", "veth", "bridge", "nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_chain_nat"),
    *("nft_ct", "nft_nat", "nft_masq", "nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_reject", "nft_reject_ipv4"),
    *("nft_reject_ipv6", "nft_hash", "nft_numgen", "nft_compat", "ipt_REJECT", "ip6t_REJECT", "ip_vs"),
    *(f"xt_{name}" for name in ("addrtype", "comment", "connmark", "conntrack", "mark", "MASQUERADE", "nat")),
    *("xt_recent", "xt_statistic", "xt_tcpudp", "sctp"),
    *(f"ip_vs_{name}" for name in ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh")),
)
_LAST_WORDS = "guest: ended with"

_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
for module in {modules}; do insmod /$module; done
mkdir /host /memory /new
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host
for module in {more}; do insmod /host$module; done
mount -t tmpfs none /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work none /new
mkdir -p /new/usr/lib/modules
mount --bind /host{directory}/image/lib/modules /new/usr/lib/modules
for tool in modprobe depmod; do [ -e /new/usr/sbin/$tool ] || ln -s /bin/busybox /new/usr/sbin/$tool; done
mount --move /proc /new/proc
mount -t sysfs none /new/sys
mount -t devtmpfs none /new/dev
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs none /new/dev/shm
mount -t devpts none /new/dev/pts
mount -t tmpfs none /new/run
exec switch_root /new /bin/sh -c {command}
"""


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 280
) -> tuple[int, str]:
    """(exit code, what it said) of a command in a guest of its own. environment: beside PATH and HOME.

    Raises RuntimeError when the guest does not come to the command's end, with what it said.
    """
    initrd = _initrd(command, environment or {})
    machine = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(_kernel()), "-initrd", str(initrd)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
    ]
    try:
        done = subprocess.run(machine, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as err:
        said = (err.stdout or b"").decode(errors="replace")
        raise RuntimeError(f"the guest did not end in {timeout_s:.0f} s; it said\n{said}") from err
    finally:
        initrd.unlink()
    said = done.stdout.replace("\r\n", "\n")
    found = re.search(rf"^{_LAST_WORDS} ([0-9]+)$", said, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the guest ended before the command; it said\n{said}{done.stderr}")
    return int(found[1]), said[: found.start()]


def _image() -> Path:
    """Debian's kernel and modules, unpacked. Not the cloud flavour, which lacks 9p."""
    image = DIRECTORY / "image"
    if image.is_dir():
        return image
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    _said("apt-get", "update", "-qq")
    said = _said("apt-cache", "depends", "linux-image-amd64")
    package = re.search(r"Depends: (linux-image-\S+)", said)
    if package is None:
        raise RuntimeError(f"cannot find Debian's kernel: {said}")
    _said("apt-get", "download", package[1])
    archive = next(DIRECTORY.glob("linux-image-*.deb"))
    partial = DIRECTORY / "image.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _said("dpkg-deb", "-x", str(archive), str(partial))
    archive.unlink()
    version = next((partial / "lib" / "modules").iterdir()).name
    _said("busybox", "depmod", "-b", str(partial), version)
    os.replace(partial, image)
    return image


def _kernel() -> Path:
    return next((_image() / "boot").glob("vmlinuz-*"))


def _initrd(command: Sequence[str], environment: Mapping[str, str]) -> Path:
    """The memory file system that mounts this machine's and starts the command there."""
    modules, more = (
        list(dict.fromkeys(path for name in names for path in _with_dependencies(name)))
        for names in (_FIRST_MODULES, _MODULES)
    )
    line = (
        f"cd {shlex.quote(os.getcwd())}; export PATH={shlex.quote(os.environ['PATH'])}:/usr/sbin:/sbin HOME=/root; "
        f"ip link set lo up; {''.join(f'export {name}={shlex.quote(text)}; ' for name, text in environment.items())}"
        f"{shlex.join(command)}; code=$?; echo; echo {_LAST_WORDS} $code; sync; busybox poweroff -f"
    )
    root = DIRECTORY / f"initrd-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "proc"):
        (root / name).mkdir(parents=True)
    shutil.copy(_said("sh", "-c", "command -v busybox").strip(), root / "bin" / "busybox")
    for path in modules:
        shutil.copy(path, root)
    init = root / "init"
    init.write_text(
        _INIT.format(
            modules=" ".join(path.name for path in modules),
            more=" ".join(str(path) for path in more if path not in modules),
            directory=DIRECTORY,
            command=shlex.quote(line),
        )
    )
    init.chmod(0o755)
    archive = root.with_suffix(".cpio")
    _said("sh", "-c", f"cd {shlex.quote(str(root))} && find . | busybox cpio -o -H newc > {shlex.quote(str(archive))}")
    shutil.rmtree(root)
    return archive


def _with_dependencies(name: str) -> Iterator[Path]:
    """A module's file after those it needs."""
    directory = next((_image() / "lib" / "modules").iterdir())
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        if Path(path).stem == name:
            yield from (directory / other for other in reversed(needed.split()))
            yield directory / path
            return
    raise RuntimeError(f"cannot find module {name} in {directory}")


def _said(*argv: str) -> str:
    return subprocess.run(argv, cwd=DIRECTORY, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    code, text = run(sys.argv[1:])
    print(text, end="")
    sys.exit(code)
