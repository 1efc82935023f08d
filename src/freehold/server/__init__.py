# SPDX-License-Identifier: Apache-2.0
"""The update service: publishing releases as static files, and a plain server for them."""
