/* SPDX-License-Identifier: Apache-2.0 */
/* Written by tests/unit/lab_rules.py from freehold.lock.rules: name, MESSAGE_ID, what was not allowed. */
static const struct words {
	const char *rule, *id, *act;
} WORDS[] = {
	{ "exec", "f95542191300422797bfe99c3d214d79", "run {path}: the file is not signed" },
	{ "gain", "911c04d6f60d43f2bead4c55eedba72f", "run {path}: it would change the user or group, and is not signed" },
	{ "map", "7b357225949c4662b320e188fc7015e5", "load code from {path}: the file is not signed" },
	{ "map-writable", "1b101910e49c4d9d9c29fe866c8185f5", "map {path} writable and executable at once" },
	{ "anonymous", "aff0fd711c95435ab94991e7c7e723b2", "make code in memory at run time (it is {path})" },
	{ "modified", "2a133527929b41b59934d4087e5a294a", "run code of {path} that was changed in memory" },
	{ "ptrace", "3c4857c3e0004eae96e3e49f2a878fca", "attach to a privileged process of {path}" },
	{ "capability", "7927b02d086b4c7a8e31406c49ef3056", "use capability {detail}, which leads past the lock (it is {path})" },
	{ "kernel-file", "c64e094179f34ee2b608cede3d616f61", "have the kernel load {path}" },
	{ "block", "ff643c61739847a9adeb2eb33b907d15", "use {path} below the file systems" },
	{ "helper", "21a4a9669e7045e3869c95fac58b9a97", "have the kernel start programs by {path}" },
	{ "memory-file", "3aeaf739cd8f431d88e8413c5c77450e", "write to the memory of a process ({path})" },
	{ "securityfs", "1874379776cd4212907893449e6976e5", "switch a security module by {path}" },
	{ "mount", "46c88b19fe744a67904827f1f52519b2", "mount over {path}, or move a mount there" },
	{ "umount", "fa4dd5b8e0bb4bf9bb92060336fbd7c2", "unmount {path}" },
	{ "pivot", "9b0f1e93aa884ed88f598bb794d3ed94", "make {path} the root of the system" },
	{ "pin", "1c8b07a1f13b4329b693a475e6e84ed4", "change the guard's own {path}" },
	{ "map-fd", "ac49f1b9053147aa97284f6ea1ead4c5", "open one of the guard's own tables" },
	{ "program", "845a9c0bca0845b5b0274a029dbf08b0", "load a BPF program of a kind that is refused (type {detail})" },
	{ "owner", "7af781a086d44b61bc2725334f80a993", "change {path} in the owner's directory" },
	{ "secret", "198e3bba27bc4844bf6b853776dd07dc", "look into the owner's secrets, or at who uses them ({path})" },
	{ "observe", "2009855f40b74debbdb5149c81add62f", "watch other processes through the kernel ({path})" },
	{ "identity", "60e839bc28774be6bd4b195e8dc81d30", "call itself another program (it is {path})" },
	{ "script", "75b07fa44234422484fa5e0580e6c533", "run the text of {path}: the file is not signed" },
	{ "launch", "65950bb4a91b4ebab13b218dfdaf70f1", "start {path} without a signed script" },
	{ "terminal", "e1cb058b701d433c8a77c7da8354abea", "type into the terminal {path} in the place of who sits there" },
	{ "other", "638cd977b2934358a5374482ff7becac", "do what the guard refuses ({path})" },
};
#define FLOOD_ID "9db9a24d27a0478a9e3386e146dad9b4"
