// One picture through an opened encoder of libavcodec.
#pragma once
#include <functional>
#include <string>

struct AVCodecContext;
struct AVFrame;

namespace vmoba::data {

// The file's bytes. `fill` writes the pixels of a frame of the encoder's size and format. Throws Error(kRuntime) naming
// `kind` ("JPEG") where the encoder fails.
std::string encode_still(AVCodecContext& encoder, const char* kind, const std::function<void(AVFrame&)>& fill);

}  // namespace vmoba::data
