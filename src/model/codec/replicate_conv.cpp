#include "model/codec/replicate_conv.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace vmoba::model {
namespace {

constexpr int64_t kPastFrames = 2;
constexpr int64_t kChunkBytes = 256 << 20;

void fill_border(const at::Tensor& x_THWC) {
  const int64_t bottom = x_THWC.size(1) - 1, right = x_THWC.size(2) - 1;
  x_THWC.select(1, 0).copy_(x_THWC.select(1, 1));
  x_THWC.select(1, bottom).copy_(x_THWC.select(1, bottom - 1));
  x_THWC.select(2, 0).copy_(x_THWC.select(2, 1));
  x_THWC.select(2, right).copy_(x_THWC.select(2, right - 1));
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

FrameSource frames_of(const at::Tensor& x_THWC) {
  return [x_THWC](int64_t first, const at::Tensor& out_THWC) {
    out_THWC.copy_(x_THWC.narrow(0, first, out_THWC.size(0)));
  };
}

at::Tensor repeat_border(int64_t frames, int64_t height, int64_t width, int64_t channels,
                         const at::TensorOptions& options, const std::function<void(const at::Tensor& out)>& inside) {
  const at::Tensor padded_THWC = at::empty({frames, height + 2, width + 2, channels}, options);
  inside(padded_THWC.narrow(1, 1, height).narrow(2, 1, width));
  fill_border(padded_THWC);
  return padded_THWC;
}

ReplicateConv::ReplicateConv(const TensorSource& source, const std::string& name, int64_t in, int64_t out,
                             std::array<int64_t, 3> stride)
    : weight_(source(name + ".weight", {out, in, 3, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast3d)),
      bias_(source(name + ".bias", {out})),
      stride_(stride) {}

at::Tensor ReplicateConv::padded(const at::Tensor& joined_THWC) const {
  const at::Tensor x_1CTHW = joined_THWC.permute({3, 0, 1, 2}).unsqueeze(0);
  return at::conv3d(x_1CTHW, weight_, bias_, stride_).squeeze(0).permute({1, 2, 3, 0}).contiguous();
}

at::Tensor ReplicateConv::operator()(const FrameSize& size, const FrameSource& source, int64_t chunk_frames) const {
  const int64_t step = stride_[0], out_frames = ceil_div(size.frames, step), in = weight_.size(1);
  const int64_t frame_bytes = (size.height + 2) * (size.width + 2) * in * int64_t(weight_.element_size());
  if (chunk_frames == 0) chunk_frames = std::max<int64_t>(1, kChunkBytes / frame_bytes / step);
  at::Tensor out_THWC, joined_THWC;
  for (int64_t first = 0; first < out_frames; first += chunk_frames) {
    const int64_t count = std::min(chunk_frames, out_frames - first);
    const int64_t needed = (count - 1) * step + kPastFrames + 1;
    // Frames of the input that the last chunk has had already, or the first one repeated.
    const int64_t kept = first == 0 ? kPastFrames : kPastFrames + 1 - step;
    const at::Tensor before = joined_THWC;
    joined_THWC = repeat_border(needed, size.height, size.width, in, weight_.options(), [&](const at::Tensor& inside) {
      source(first * step - kPastFrames + kept, inside.slice(0, kept));
    });
    const at::Tensor past = joined_THWC.narrow(0, 0, kept);
    past.copy_(first == 0 ? joined_THWC.narrow(0, kept, 1).expand_as(past) : before.slice(0, before.size(0) - kept));
    const at::Tensor part_THWC = padded(joined_THWC);
    if (count == out_frames) return part_THWC;
    if (first == 0)
      out_THWC = at::empty({out_frames, part_THWC.size(1), part_THWC.size(2), part_THWC.size(3)}, part_THWC.options());
    out_THWC.narrow(0, first, count).copy_(part_THWC);
  }
  return out_THWC;
}

at::Tensor ReplicateConv::operator()(const at::Tensor& x_THWC) const {
  return (*this)({x_THWC.size(0), x_THWC.size(1), x_THWC.size(2)}, frames_of(x_THWC));
}

}  // namespace vmoba::model
