// Bad input, by name, and files that are written whole or not at all.
#ifndef FOVEA_TOOLS_OUTPUT_H_
#define FOVEA_TOOLS_OUTPUT_H_

#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fovea::tools {

// What is wrong with the user's input, in one line that names the file or the option.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void Refuse(const std::string& path, fmt::format_string<Args...> format, Args&&... args) {
  throw InputError(path + ": " + fmt::format(format, std::forward<Args>(args)...));
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

struct OutputFile {
  std::string path;
  std::function<bool(std::FILE*)> write;  // false: errno says why
};

// Throws InputError if the files could not be written, as far as can be told before there is anything to write: the
// same path twice, a folder that is missing or read-only, something in place that is not a regular file.
void CheckOutputFiles(const std::vector<OutputFile>& files);

// Writes all files or none: each whole under a temporary name in its own directory, then all are renamed into place.
// Throws InputError. A target that exists is replaced only if it is a regular file; a symbolic link is followed.
void WriteOutputFiles(const std::vector<OutputFile>& files);

}  // namespace fovea::tools

#endif  // FOVEA_TOOLS_OUTPUT_H_
