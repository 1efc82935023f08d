# SPDX-License-Identifier: Apache-2.0
"""Updates: what a release and a stream say (pure), and how they are fetched from anybody's web server."""
