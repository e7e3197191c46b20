from yolo_os.terminal import shown


def test_a_text_is_shown_without_colours_and_with_other_codes_spelled_out():
    assert shown("\x1b[34m\x1b[1mval: \x1b[0mno image") == "val: no image"
    assert shown("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
