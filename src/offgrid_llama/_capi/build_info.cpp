// How this extension was built. CMakeLists.txt defines the three macros, for this file alone.

#include "og.h"

const char * og_build_commit() { return OG_BUILD_COMMIT; }
const char * og_build_compiler() { return OG_BUILD_COMPILER; }
const char * og_build_flags() { return OG_BUILD_FLAGS; }
