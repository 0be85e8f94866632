#pragma once

#include <memory>
#include <string>

#include "tandem/io/tracker.h"

/// \file
/// Trackers that write files into a directory of the run, which is made if it is missing. A second run in the same
/// directory goes on with its files. Each call of a tracker is written with one system call, at once: a process that is
/// killed leaves whole lines and records, but perhaps for the last one, and a second run removes that. Numbers are
/// written in full and do not depend on the locale. All throw Error that names the file: they are trackers, so a
/// TrackerSet tells of it.
namespace tandem::io {

/// `log.jsonl`, JSON Lines with everything that trackers are told, and the pictures as `images/NAME-STEP-NUMBER.png`.
/// Infinite and NaN values are null, and bytes that are no UTF-8 are replaced by U+FFFD. Lines are told apart by
/// "type":
///
///     {"type":"run","name":"mnist","time":1764150000.1,"config":{…},"versions":{…},"ranks":2,"device":"cpu"}
///     {"type":"scalars","step":1,"time":…,"values":{"train/loss":0.3}}
///     {"type":"text","step":1,"time":…,"name":"sample","text":"…"}
///     {"type":"histogram","step":1,"time":…,"name":"weights","min":…,"max":…,"sum":…,"sum_squares":…,"count":…,
///      "edges":[…],"counts":[…]}
///     {"type":"images","step":1,"time":…,"name":"worst","files":["images/worst-000001-0.png"],"captions":["a seven"]}
///     {"type":"matrix","step":1,"time":…,"name":"eval/confusion","labels":[…],"values":[[…]]}
///     {"type":"event","step":1,"time":…,"name":"checkpoint","detail":"checkpoints/checkpoint_3"}
///     {"type":"end","time":…,"status":"finished","values":{"test/accuracy":0.97}}
std::unique_ptr<Tracker> json_lines_tracker(const std::string& directory);

/// `scalars.csv` with the columns step, time, name and value, a line a number (RFC 4180). Scalars only. Infinite and
/// NaN values are inf, -inf and nan.
std::unique_ptr<Tracker> csv_tracker(const std::string& directory);

/// A file `events.out.tfevents.TIME.HOST.PID` a run for TensorBoard: scalars (as float32), pictures, histograms, texts,
/// and the configuration for its page HPARAMS. Events and matrices are texts, and so are the pictures' captions, since
/// TensorBoard has no place for them.
std::unique_ptr<Tracker> tensorboard_tracker(const std::string& directory);

}  // namespace tandem::io
