# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a sealed release and a disk. Read in order: tools, packages, tree, commit, image, initrd, uki, seal, disk."""
