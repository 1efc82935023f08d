/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the sealed launchers (updater.c, emergency_sshd.c) do alike with what their caller left them. Each is one file and a
 * program of its own, so this is all they share.
 */
#pragma once

#include <signal.h>
#include <stddef.h>
#include <sys/time.h>
#include <unistd.h>

/* An empty input that is nobody's: /dev/null may be anything by now. */
static inline int empty_input(void)
{
	int ends[2];

	if (pipe(ends) != 0 || dup2(ends[0], STDIN_FILENO) < 0)
		return -1;
	return close_range(STDERR_FILENO + 1, ~0u, 0);
}

static inline int forget_signals(void)
{
	struct itimerval never = { 0 };
	sigset_t none;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL); /* two of them and the C library's own cannot be set */
	setitimer(ITIMER_REAL, &never, NULL);
	setitimer(ITIMER_VIRTUAL, &never, NULL);
	setitimer(ITIMER_PROF, &never, NULL);
	sigemptyset(&none);
	return sigprocmask(SIG_SETMASK, &none, NULL);
}
