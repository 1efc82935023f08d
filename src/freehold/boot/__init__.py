# SPDX-License-Identifier: Apache-2.0
"""Between the early step and systemd: provisioning once, typed machine state, nothing believed that root wrote."""
