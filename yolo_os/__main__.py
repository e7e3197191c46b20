"""`python -m yolo_os` is `yolo-os`."""

import sys

from yolo_os.cli import main

if __name__ == "__main__":
    sys.exit(main())
