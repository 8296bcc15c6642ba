/* A translation unit of some nine thousand lines, for the compiler: a single-file library of Debian's libstb-dev. */
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
