# foldswap_config: the table of keys and the TOML loader. Included by daemon/CMakeLists.txt; needs
# nothing else of the daemon, so that the command line can check a file without one.
find_package(tomlplusplus REQUIRED)

add_library(foldswap_config STATIC
  ${CMAKE_CURRENT_LIST_DIR}/config.cc ${CMAKE_CURRENT_LIST_DIR}/config_file.cc)
target_link_libraries(foldswap_config
  PUBLIC foldswap_base PRIVATE tomlplusplus::tomlplusplus)

if(BUILD_TESTING)
  find_package(GTest REQUIRED)
  include(GoogleTest)
  add_executable(config_test ${CMAKE_CURRENT_LIST_DIR}/config_test.cc)
  target_compile_definitions(config_test PRIVATE
    FOLDSWAP_EXAMPLE_CONFIG="${PROJECT_SOURCE_DIR}/configs/foldswap.toml")
  target_link_libraries(config_test PRIVATE foldswap_config GTest::gtest_main)
  gtest_discover_tests(config_test DISCOVERY_MODE PRE_TEST PROPERTIES LABELS unit)
endif()
