from yolo_os.terminal import counted, shown


def test_a_text_is_shown_without_colours_and_with_other_codes_spelled_out():
    assert shown("\x1b[34m\x1b[1mval: \x1b[0mno image") == "val: no image"
    assert shown("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def test_what_is_counted_is_named_in_the_singular_where_it_is_one():
    assert [counted(number, "box", "es", thousands=True) for number in (0, 1, 2049)] == [
        "0 boxes",
        "1 box",
        "2,049 boxes",
    ]
    assert counted(2049, "image") == "2049 images"
