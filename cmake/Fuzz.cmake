# foldswap_fuzzer(NAME SOURCES file... LINKS target...): the program NAME_fuzz, of the source that has its name and
# the files that it shall be guided through, in clang builds (FOLDSWAP_FUZZ). In all others the inputs of tests/fuzz/corpus/NAME are replayed by
# the CTest test fuzz_corpus_NAME. scripts/fuzz.sh runs all fuzzers for a while.
function(foldswap_fuzzer name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINKS" ${ARGN})
  if(FOLDSWAP_FUZZ)
    add_executable(${name}_fuzz ${name}_fuzz.cc ${arg_SOURCES})
    target_compile_options(${name}_fuzz PRIVATE -fsanitize=fuzzer,address,undefined)
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer,address,undefined)
    target_link_libraries(${name}_fuzz PRIVATE foldswap_base foldswap_flags ${arg_LINKS})
  endif()
  if(BUILD_TESTING AND NOT FOLDSWAP_SANITIZE MATCHES "thread")
    add_executable(${name}_replay ${name}_fuzz.cc ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.cc)
    target_link_libraries(${name}_replay PRIVATE foldswap_base foldswap_flags foldswap_sanitize ${arg_LINKS})
    add_test(NAME fuzz_corpus_${name} COMMAND ${name}_replay ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name})
    set_tests_properties(fuzz_corpus_${name} PROPERTIES LABELS unit TIMEOUT 120)
  endif()
endfunction()
