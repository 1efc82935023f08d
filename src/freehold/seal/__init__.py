# SPDX-License-Identifier: Apache-2.0
"""What a sealed deployment is made of, byte by byte: read and written alike by builders and by machines."""
