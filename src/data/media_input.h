// A media file as libav opens it: its container, its video stream, and what stream and frame say of the picture.
#pragma once
#include <string>

#include "data/libav_ptr.h"
#include "data/media_content.h"

struct AVStream;

namespace vmoba::data {

// Throws MediaError where the file is missing, empty, unreadable or no container that is taken.
InputPtr open_input(const std::string& path, const MediaContent& content);
// Throws MediaError with the cause where libav's own file has met an error (AVIOContext::error): demuxers turn a
// failing disk into a short or damaged file.
void check_storage(int file_error);

// The default video stream with the most pixels. Throws MediaError where there is none.
int choose_stream(const AVFormatContext& input);

// From the display matrix of frame or stream. Throws MediaError where it is no quarter turn.
Orientation stored_orientation(const AVStream& stream, const AVFrame& frame);
bool is_interlaced(const AVFrame& frame);
// One picture in a container of videos: AVIF, HEIC.
bool is_still(const AVFormatContext& input, const AVStream& stream);
// Every frame has the same share of time, gaps apart.
bool is_steady(const AVStream& stream);
// The same, and the frame rate is that of the shortest frames: nothing is left out between them.
bool is_numbered(const AVStream& stream, bool interlaced);
// In ticks of the stream; 0 where the file does not say.
double frame_duration(const AVFrame& frame);

}  // namespace vmoba::data
