#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the laboratory inside the tools tree: build.sh GUARD_OUT KERNEL_TREE WORK
# Leaves WORK/initrd, WORK/disk and WORK/owner, a disk with a partition. Keys are made here and forgotten.
set -eu
out=$1 kernel=$2 work=$3
here=$(dirname "$0")
rm -rf "$work/root"
mkdir -p "$work/root/seal" "$work/root/empty" "$work/root/root" "$work/root/modules" "$work/root/layer"
cd "$work/root/seal"
mkdir -p usr/bin usr/lib/place usr/lib/x86_64-linux-gnu usr/lib/freehold lib64 etc dev proc sys tmp sysroot mnt signed
ln -s usr/lib lib
echo x >etc/file
cd - >/dev/null
seal=$work/root/seal
gcc -O1 -g -Wall -Wextra -Werror -static -I"$out" "$here/lab.c" "$out/guard.o" -o "$seal/usr/bin/lab" -lbpf -lelf -lz -lzstd
strip "$seal/usr/bin/lab"
gcc -O1 "$here/dyn.c" -o "$seal/usr/bin/dyn"
gcc -O1 -DEVIL -shared -fPIC "$here/dyn.c" -o "$seal/usr/lib/evil.so"
cp "$seal/usr/bin/lab" "$seal/usr/bin/jit"
# For the races: two tiny programs of one size, of which only one is sealed and signed; a page of harmless code; a script.
mkdir -p "$seal/usr/lib/race"
gcc -O1 -Wall -Wextra -Werror -static -nostdlib -fno-stack-protector -Wl,--build-id=none "$here/race_program.c" -o "$seal/usr/bin/good"
gcc -O1 -Wall -Wextra -Werror -static -nostdlib -fno-stack-protector -Wl,--build-id=none -DEVIL "$here/race_program.c" -o "$work/root/evil"
strip "$seal/usr/bin/good" "$work/root/evil"
printf '\270\0\0\0\0\303' >"$seal/usr/lib/race/page"
truncate -s 4096 "$seal/usr/lib/race/page"
printf '#!/tmp/race/link\n' >"$seal/usr/bin/racing"
chmod 755 "$seal/usr/bin/racing"
cp "$out/guardctl" "$seal/usr/bin/"
# The launcher as it ships; what it takes for Python is the laboratory.
gcc -O2 -Wall -Wextra -Werror -std=gnu17 -static early/updater.c -o "$seal/usr/lib/freehold/updater"
cp "$seal/usr/lib/freehold/updater" "$seal/usr/lib/freehold/copy"
cp "$seal/usr/bin/lab" "$seal/usr/bin/python3"
# Emergency ssh's two programs as they ship; what they take for sshd is the laboratory.
mkdir -p "$seal/usr/sbin" "$seal/usr/lib/openssh" "$seal/usr/etc" "$seal/root"
for part in sshd shell; do
	gcc -O2 -Wall -Wextra -Werror -std=gnu17 -static "early/emergency_$part.c" -o "$seal/usr/lib/freehold/emergency-$part"
done
cp "$seal/usr/lib/freehold/emergency-sshd" "$seal/usr/lib/freehold/emergency-copy"
for program in usr/sbin/sshd usr/lib/openssh/sshd-session usr/lib/openssh/sshd-auth; do cp "$seal/usr/bin/lab" "$seal/$program"; done
echo 'sshd:x:1001:65534::/run/sshd:/usr/sbin/nologin' >"$seal/usr/etc/passwd"
printf '#!/usr/bin/lab ok\n' >"$seal/usr/bin/script"
chmod 755 "$seal/usr/bin/script"
echo >"$seal/usr/lib/freehold/updater.py"
for shell in bash dash perl; do cp "/usr/bin/$shell" "$seal/usr/bin/"; done
echo 'exit 7' >"$seal/usr/lib/sealed.sh"
echo 'exit 7' >"$seal/etc/script"
printf 'import sys\nraise SystemExit(7 if open(sys.argv[1]).read() == "data\\n" else 9)\n' >"$seal/usr/lib/sealed"
ln -s ../lib/sealed "$seal/usr/bin/tool"
printf '#!/usr/bin/dash -e\nexit 7\n' >"$seal/usr/bin/by-itself"
chmod 755 "$seal/usr/bin/by-itself"
cat >"$seal/usr/lib/reads.sh" <<'END'
read -r x <"$1"
[ "$x" = data ] && exit 7
END
mkdir "$seal/usr/lib/directory"
cp "$seal/usr/lib/sealed" "$seal/usr/lib/directory/__main__.py"
printf 'import sys\nfor line in sys.stdin:\n    print(open(line[:-1]).read(), end="", flush=True)\n' >"$seal/usr/lib/loop"
libraries=$(ldd /usr/bin/bash /usr/bin/perl /usr/bin/python3.13 /usr/lib/python3.13/lib-dynload/_ctypes.*.so /usr/bin/true | awk '$3 ~ "^/" {print $3}' | sort -u)
for library in $libraries; do cp -L "$library" "$seal/usr/lib/x86_64-linux-gnu/"; done
(cd "$seal/usr/lib/x86_64-linux-gnu" && mv libz.so.1 libz.so.1.real && ln -s libz.so.1.real libz.so.1)
cp -L /lib64/ld-linux-x86-64.so.2 "$seal/lib64/"
cp /usr/bin/python3.13 "$seal/usr/bin/"
mkdir -p "$seal/usr/lib/python3.13/lib-dynload"
echo 'raise SystemExit(7)' >"$seal/usr/lib/python3.13/seven.py"
echo 'exit 7;' >"$seal/usr/lib/seven.pm"
cp /usr/lib/python3.13/*.py "$seal/usr/lib/python3.13/"
for part in encodings collections ctypes importlib re; do cp -r "/usr/lib/python3.13/$part" "$seal/usr/lib/python3.13/"; done
cp /usr/lib/python3.13/lib-dynload/_ctypes.*.so /usr/lib/python3.13/lib-dynload/_struct*.so "$seal/usr/lib/python3.13/lib-dynload/" 2>/dev/null ||
	cp /usr/lib/python3.13/lib-dynload/_ctypes.*.so "$seal/usr/lib/python3.13/lib-dynload/"
for module in fs/overlayfs/overlay drivers/block/virtio_blk fs/erofs/erofs; do
	cp "$kernel"/usr/lib/modules/*/kernel/$module.ko.xz "$work/root/modules/"
done
cp "$kernel"/usr/lib/modules/*/kernel/lib/libcrc32c.ko.xz "$work/root/modules/" 2>/dev/null || : # newer kernels have it built in
cp "$work/root/modules/overlay.ko.xz" "$seal/usr/lib/"
cp "$work/root/modules/overlay.ko.xz" "$seal/usr/lib/nvmet.ko.xz" # judged by its name
# Names enough that some of the image's metadata is read when they are asked for, not before.
mkdir -p "$work/names"
for number in $(seq 2000); do mkdir "$work/names/a-name-that-takes-some-room-$number"; done
mkfs.erofs --quiet "$work/root/image" "$work/names" >/dev/null
rm -r "$work/names"
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=lab -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
openssl x509 -in "$work/cert.pem" -outform der -out "$seal/usr/lib/cert.der"
fsverity sign "$seal/usr/bin/lab" "$seal/usr/lib/lab.sig" --key="$work/key.pem" --cert="$work/cert.pem" >/dev/null
fsverity sign "$seal/usr/bin/good" "$seal/usr/lib/good.sig" --key="$work/key.pem" --cert="$work/cert.pem" >/dev/null
rm "$work/key.pem"
cp "$seal/usr/bin/lab" "$work/root/init"
(cd "$work/root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet >"$work/initrd")
rm -f "$work/disk"
mkfs.ext4 -q -b 4096 -O verity "$work/disk" 32M
rm -f "$work/owner"
truncate -s 40M "$work/owner"
printf 'label: gpt\nstart=2048, size=65536\n' | sfdisk -q "$work/owner"
mkfs.ext4 -q -F -b 4096 -E offset=1048576 "$work/owner" 32M
