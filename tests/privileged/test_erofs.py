"""Our EROFS images as the kernel reads them: the same names, rights and bytes as tar unpacks from the same archive."""

import random
import subprocess
from pathlib import Path

from fs.images import ImageStore

LISTING = "find . -mindepth 1 -printf '%p %y %m %U %G %Ts %n %l\\n' | sort; find . -type f -exec sha256sum {} + | sort"


def test_the_kernel_sees_what_tar_unpacks(tmp_path: Path) -> None:
    root, chance = tmp_path / "root", random.Random(5)
    for folder in ("etc", "home/user", "proc", "sys", "dev", "tmp", "usr/lib/deep/er", ".isobox", "many"):
        (root / folder).mkdir(parents=True)
    for number in range(700):
        (root / "many" / f"{'n' * (number % 200)}{number}").write_bytes(chance.randbytes(number % 9 * 1000))
    (root / "usr/lib/big").write_bytes(chance.randbytes(3 << 20))
    (root / "usr/lib/link").symlink_to("/usr/lib/" + "t" * 3000)
    (root / "usr/lib/big").chmod(0o4711)
    (root / "usr/lib/same").hardlink_to(root / "usr/lib/big")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    init = tmp_path / "init-1"
    init.write_bytes(b"x")
    store = ImageStore(tmp_path / "images", guest=lambda: (init,))
    image = store.path(store.import_path("x", root))
    subprocess.run(["fsck.erofs", str(image)], check=True, capture_output=True)
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(point)], check=True)
    try:
        seen = subprocess.run(["sh", "-c", LISTING], cwd=point, check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run(["umount", str(point)], check=True)
    there = subprocess.run(["sh", "-c", LISTING], cwd=root, check=True, capture_output=True, text=True).stdout
    ours = (
        "./.isobox",
        "./etc",
        "./home",
        "./tmp",
        "/etc/resolv.conf",
        "/etc/passwd",
        "/etc/group",
        "/etc/hosts",
        "/.isobox/init",
    )

    def kept(text: str) -> list[str]:
        return [line for line in text.splitlines() if not any(name in line for name in ours)]

    assert kept(seen) == kept(there)
    assert len(kept(seen)) > 1400
