# SPDX-License-Identifier: Apache-2.0
"""Started by the launcher beside it, /usr/lib/freehold/updater, as ``python3 -I -S -B``.

No environment, no site directories, modules from the sealed tree only. Started in another way it works, but may not
read the secrets.
"""

import sys

sys.path.insert(0, "/usr/lib/python3/dist-packages")

from freehold.device.updater import main

sys.exit(main(sys.argv[1:]))
