# Every target of ours links foldswap_flags: warnings as errors, sanitizers, thread-safety analysis.
add_library(foldswap_flags INTERFACE)
target_compile_options(foldswap_flags INTERFACE
  -Wall -Wextra -Wconversion -Wshadow -Werror -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(foldswap_flags INTERFACE -Wthread-safety -Wthread-safety-beta)
elseif(FOLDSWAP_SANITIZE MATCHES "thread")
  # g++ says that fences are not modelled by TSan; none of our synchronisation rests on a fence alone.
  target_compile_options(foldswap_flags INTERFACE -Wno-tsan)
endif()
if(FOLDSWAP_MUTATIONS)
  target_compile_definitions(foldswap_flags INTERFACE FOLDSWAP_MUTATIONS=1)
  target_include_directories(foldswap_flags INTERFACE ${CMAKE_BINARY_DIR}/mutation)
endif()
if(FOLDSWAP_DEBUG_CHECKS)
  target_compile_definitions(foldswap_flags INTERFACE FOLDSWAP_DEBUG_CHECKS=1)
endif()
# foldswap_threaded_only(VARIABLE FILTER): what a unit test program is told, so that ThreadSanitizer builds run those
# tests alone that have threads; it has nothing to look at in others.
function(foldswap_threaded_only variable filter)
  set(${variable} PARENT_SCOPE)
  if(FOLDSWAP_SANITIZE MATCHES "thread")
    set(${variable} --gtest_filter=${filter} PARENT_SCOPE)
  endif()
endfunction()
# The preload library lives in other people's processes and never gets a sanitizer: it does not
# link this.
add_library(foldswap_sanitize INTERFACE)
if(FOLDSWAP_SANITIZE)
  target_compile_options(foldswap_sanitize INTERFACE -fsanitize=${FOLDSWAP_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(foldswap_sanitize INTERFACE -fsanitize=${FOLDSWAP_SANITIZE})
endif()
