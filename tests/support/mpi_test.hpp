// For test programs that run under mpirun: dying on purpose, and signs between ranks that do not go through MPI.
#pragma once

#include <filesystem>
#include <string>

#include "dtr/base/deadline.hpp"

namespace dtr::testing {

/// The folder that all ranks of this run share (DTR_TEST_VERDICT_FOLDER); ends the process if the launcher set none.
[[nodiscard]] std::filesystem::path verdict_folder();

/// Ends this process as `kill -9` does. Name the rank in dtr_mpi_test's DEAD.
[[noreturn]] void die_now();

/// Puts up a sign, seen by all ranks at once.
void put_sign(const std::string& name, const std::string& text = {});

/// Waits for a sign; false if it is not there at the deadline.
[[nodiscard]] bool wait_for_sign(const std::string& name, const Deadline& deadline);

/// The text of a sign that is there.
[[nodiscard]] std::string read_sign(const std::string& name);

}  // namespace dtr::testing
