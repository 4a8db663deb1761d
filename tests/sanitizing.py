"""C kernels that check what they do; part of the key under which a compiled file is kept."""

# Compiled fast and close to what is written: vectors made of a loop hide where it leaves its array.
FLAGS = (
    *("-O1", "-g", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
)
