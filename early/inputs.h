/* SPDX-License-Identifier: Apache-2.0 */
/* What may be read into the kernel (modules, firmware): the release's signed policy for IPE, put into force. */
#ifndef FREEHOLD_INPUTS_H
#define FREEHOLD_INPUTS_H

/* The signed command line names the policy, by the SHA-256 of its rules; where it lies beside a deployment's manifest. */
#define INPUTS_WORD "freehold.inputs"
#define INPUTS_FILE "kernel-inputs.p7"

/*
 * Give the kernel the signed policy `file`, make the one called freehold-`name` the active one, and see that IPE
 * enforces. Needs securityfs. Never undone in this boot once the guard is latched. Returns 0, or -errno of which
 *   -EOPNOTSUPP: the kernel has no IPE, or it is switched off;
 *   -ENOENT: there is no such file;
 *   -ENOKEY: its signer is not known to the firmware (or there is no firmware that knows anybody);
 *   -EKEYREJECTED, -EBADMSG: it is damaged, or another release's.
 */
int inputs_enforce(const char *file, const char *name);

/* What such an error means, for people. */
const char *inputs_fault(int error);

#endif
