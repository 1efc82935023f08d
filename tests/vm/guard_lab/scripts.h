/* SPDX-License-Identifier: Apache-2.0 */
/* Text for privileged interpreters. Part of lab.c, included there once. What ran says so by its exit status, 7. */
#ifndef FREEHOLD_GUARD_LAB_SCRIPTS_H
#define FREEHOLD_GUARD_LAB_SCRIPTS_H

#define DASH "/usr/bin/dash"
#define BASH "/usr/bin/bash"
#define PYTHON "/usr/bin/python3.13"
#define PERL "/usr/bin/perl"

static void scripts_write(void)
{
	put("/tmp/text", "exit 7\n", 0644);
	put("/tmp/text.sh", "exit 7\n", 0644);
	put("/tmp/pytext", "raise SystemExit(7)\n", 0644);
	put("/tmp/-c", "raise SystemExit(7)\n", 0644);
	put("/tmp/imported.py", "raise SystemExit(7)\n", 0644);
	put("/tmp/imported.pm", "exit 7;\n", 0644);
	put("/tmp/libc.so.6", "raise SystemExit(7)\n", 0644);
	put("/tmp/libz.so.1", "raise SystemExit(7)\n", 0644);
	put("/tmp/empty", "", 0644);
	put("/tmp/data", "data\n", 0644);
	put("/etc/mine", "exit 7\n", 0644);
	put("/etc/passwd", "exit 7\n", 0644);
	mkdir("/etc/below", 0755);
	put("/etc/below/passwd", "exit 7\n", 0644);
	copy("/usr/lib/loop", "/tmp/loop", 0644);
	if (symlink("/tmp/pytext", "/tmp/link"))
		perror("/tmp/link");
}

/* 0: the text ran. An interpreter that was refused a file ends with a status of its own. */
static int ran(int status)
{
	return status == 7 ? 0 : EPERM;
}

static int with(const char *variable, char *const argv[])
{
	return spawn(argv, (char *[]){(char *)variable, NULL});
}

static int dash_script(void) { return ran(RUN(DASH, "/tmp/text")); }
static int bash_script(void) { return ran(RUN(BASH, "/tmp/text.sh")); }
static int dash_source(void) { return ran(RUN(DASH, "-c", ". /tmp/text; exit 9")); }
static int bash_source(void) { return ran(RUN(BASH, "-c", ". /tmp/text; exit 9")); }
static int bash_source_as_input(void) { return ran(RUN(BASH, "-c", "exec 0<&-; . /tmp/text; exit 9")); }
static int bash_source_input(void) { return ran(RUN(BASH, "-c", ". /proc/self/fd/0 < /tmp/text; exit 9")); }
static int bash_in_subshell(void) { return ran(RUN(BASH, "-c", "( . /tmp/text; exit 9 )")); }
static int dash_starts_unsigned(void) { return RUN(DASH, "-c", "/tmp/lab ok") ? EPERM : 0; }
static int bash_child_reads(void) { return ran(RUN(BASH, "-c", "exec 5< /tmp/data; ( read -u 5 x && [ $x = data ] && exit 7 )")); }
/* dash takes a script that it cannot read for an empty one: refused when it is opened, so that it says so. */
static int dash_script_says_so(void) { return RUN(DASH, "-eo", "nounset", "/tmp/empty"); }
static int bash_environment(void) { return ran(with("BASH_ENV=/tmp/text", (char *[]){BASH, "-c", "exit 9", NULL})); }
static int etc_changed_source(void) { return ran(RUN(DASH, "-c", ". /etc/mine; exit 9")); }
static int bash_accounts_as_script(void) { return ran(RUN(BASH, "/etc/passwd")); }
static int bash_other_accounts(void) { return ran(RUN(BASH, "-c", "exec 5< /etc/below/passwd; read -u 5 x && [ \"$x\" = 'exit 7' ] && exit 7")); }
static int python_script(void) { return ran(RUN(PYTHON, "-I", "-S", "/tmp/pytext")); }
static int python_script_link(void) { return ran(RUN(PYTHON, "-I", "-S", "/tmp/link")); }
static int python_script_options(void) { return ran(RUN(PYTHON, "-ISX", "dev", "-W", "ignore", "/tmp/pytext", "-c")); }
static int python_script_dashes(void) { return ran(RUN(DASH, "-c", "cd /tmp; exec " PYTHON " -I -S -- -c")); }
static int python_import(void) { return ran(RUN(PYTHON, "-I", "-S", "-c", "import sys; sys.path.insert(0, '/tmp'); import imported")); }
/* Text that is called like a library, which the dynamic loader opens first. */
static int python_script_called_library(void) { return ran(RUN(PYTHON, "-I", "-S", "/tmp/libc.so.6")); }
static int python_script_called_link(void) { return ran(RUN(PYTHON, "-I", "-S", "/tmp/libz.so.1")); }
static int python_script_called_here(void) { return ran(RUN(DASH, "-c", "cd /tmp; exec " PYTHON " -I -S libc.so.6")); }
static int perl_script(void) { return ran(RUN(PERL, "-w", "/tmp/text")); }
static int perl_options(void) { return ran(RUN(PERL, "-F/e/", "-I", "/x", "/tmp/text", "/tmp/data")); }
static int perl_import(void) { return ran(RUN(PERL, "-I/tmp", "-e", "use imported; exit 9")); }

/* ---- and what goes on working ---- */

/* Users' scripts that run since before the latch: to them a file is data, in whatever mode. One began before the guard was
 * loaded; descriptors cross the lab's exec under fixed numbers. */
enum { LOOP_FD = 120, LOOP_VETERAN_FD = 122 };

static void loop_start(int fd, const char *root, char *script)
{
	int to[2], from[2];

	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
		return;
	if (fork() == 0) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		if (chroot(root) || chdir("/") || setgid(1000) || setuid(1000))
			_exit(1);
		execve(PYTHON, (char *[]){PYTHON, "-I", "-S", script, NULL}, (char *[]){NULL});
		_exit(1);
	}
	dup2(to[1], fd);
	dup2(from[0], fd + 1);
	close(to[0]);
	close(to[1]);
	close(from[0]);
	close(from[1]);
}

static int loop_ask(int fd)
{
	char answer[16] = "";

	if (write(fd, "/tmp/data\n", 10) != 10 || read(fd + 1, answer, sizeof(answer) - 1) < 0)
		return errno;
	return strcmp(answer, "data\n") ? EPERM : 0;
}

static int old_script_reads_data(void) { return loop_ask(LOOP_FD); }
static int veteran_script_reads_data(void) { return loop_ask(LOOP_VETERAN_FD); }

static int sealed_shell_script(void) { return ran(RUN(DASH, "/usr/lib/sealed.sh")); }
static int sealed_source(void) { return ran(RUN(BASH, "-c", ". /usr/lib/sealed.sh; exit 9")); }
static int etc_source(void) { return ran(RUN(DASH, "-c", ". /etc/script; exit 9")); }
static int shell_reads_input(void) { return ran(RUN(BASH, "-c", "read x < /tmp/data && [ $x = data ] && exit 7")); }
static int dash_reads_input(void) { return ran(RUN(DASH, "-c", "while read x; do [ $x = data ] && exit 7; done < /tmp/data")); }
static int shell_reads_kernel(void) { return ran(RUN(BASH, "-c", "x=$(< /proc/version) && [ -n \"$x\" ] && exit 7")); }
/* What the kernel reads by itself, while a shell waits for it. */
static int shell_names_image(void)
{
	static int number = 1;
	char command[128];

	put("/proc/sys/vm/drop_caches", "3", 0644);
	snprintf(command, sizeof(command), "test -d /mnt/image/a-name-that-takes-some-room-%d && exit 7; exit 9", number += 400);
	return ran(RUN(DASH, "-c", command));
}
static int shell_reads_accounts(void) { return ran(RUN(BASH, "-c", "exec 5< /etc/passwd; read -u 5 x && [ \"$x\" = 'exit 7' ] && exit 7")); }
static int shell_pipe(void) { return ran(RUN(BASH, "-c", "echo 'exit 7' | " DASH)); }
static int shell_heredoc(void) { return ran(RUN(DASH, "-c", "read x <<END\ndata\nEND\n[ $x = data ] && exit 7")); }
static int shell_writes(void) { return ran(RUN(BASH, "-c", "echo x > /tmp/written && exit 7")); }
static int python_sealed_script(void) { return ran(RUN(PYTHON, "-I", "-S", "/usr/lib/sealed", "/tmp/data")); }
static int python_sealed_directory(void) { return ran(RUN(PYTHON, "-I", "-S", "/usr/lib/directory", "/tmp/data")); }
static int python_sealed_here(void) { return ran(RUN(DASH, "-c", "cd /usr/lib; exec " PYTHON " -I -S sealed /tmp/data")); }
static int python_sealed_other_name(void) { return ran(RUN(PYTHON, "-I", "-S", "/lib/sealed", "/tmp/data")); }
static int python_sealed_link(void) { return ran(RUN(PYTHON, "-I", "-S", "/usr/bin/tool", "/tmp/data")); }
static int python_command(void) { return ran(RUN(PYTHON, "-I", "-S", "-c", "raise SystemExit(7 if open('/tmp/data').read() else 9)")); }
static int perl_command(void) { return ran(RUN(PERL, "-e", "open F, '/tmp/data' or exit 9; exit 7 if <F>")); }

/* ---- code that is no file: what S2 refuses to the privileged ---- */

/* With text on standard input, which no file holds. */
static int fed(const char *text, char *const argv[])
{
	int ends[2], saved = dup(0), status;

	if (pipe(ends) || write(ends[1], text, strlen(text)) < 0)
		return errno;
	close(ends[1]);
	dup2(ends[0], 0);
	close(ends[0]);
	status = spawn(argv, (char *[]){NULL});
	dup2(saved, 0);
	close(saved);
	return ran(status);
}

/* A pipe with a name, and text in it. */
static int fed_by_name(const char *path, const char *text, char *const argv[])
{
	int fd, status;

	mkfifo(path, 0666);
	chmod(path, 0666);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return errno;
	status = spawn(argv, (char *[]){NULL});
	close(fd);
	return ran(status);
}

#define ARGV(...) ((char *[]){__VA_ARGS__, NULL})

static int dash_command(void) { return ran(RUN(DASH, "-c", "exit 7")); }
static int dash_standard_input(void) { return fed("exit 7\n", ARGV(DASH, "-s")); }
static int dash_prompt(void) { return fed("exit 7\n", ARGV(DASH)); }
static int bash_plus(void) { return ran(RUN(BASH, "+e", "-c", "exit 7")); }
static int bash_option_argument(void) { return ran(RUN(BASH, "-oc", "errexit", "exit 7")); }
static int bash_init_file(void) { return ran(RUN(BASH, "--init-file", "/usr/lib/sealed.sh", "-c", "exit 7")); }
static int bash_cluster(void) { return ran(RUN(BASH, "-ec", "exit 7")); }
static int python_module(void) { return ran(RUN(PYTHON, "-S", "-m", "seven")); }
static int perl_module(void) { return ran(RUN(PERL, "-I/usr/lib", "-Mseven", "/usr/lib/sealed")); }
static int dash_fifo(void) { return fed_by_name("/tmp/fifo", "exit 7\n", ARGV(DASH, "/tmp/fifo")); }
static int dash_fifo_called_library(void) { return fed_by_name("/tmp/place/libc.so.6", "exit 7\n", ARGV(DASH, "/tmp/place/libc.so.6")); }

/* ---- and what S2 leaves alone ---- */

static int dash_plain_options(void) { return ran(RUN(DASH, "-eu", "-o", "noglob", "--", "/usr/lib/sealed.sh")); }
static int dash_lone_dash(void) { return ran(RUN(DASH, "-", "/usr/lib/sealed.sh")); }
static int dash_lone_dash_input(void) { return fed("exit 7\n", ARGV(DASH, "-")); }
static int dash_by_itself(void) { return ran(RUN("/usr/bin/by-itself")); }
static int dash_script_reads_fifo(void) { return fed_by_name("/tmp/fifo", "data\n", ARGV(DASH, "/usr/lib/reads.sh", "/tmp/fifo")); }

#endif
