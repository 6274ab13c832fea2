// What /metrics says and /health does not: how long things take, and the books of each sink.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Return every sample of Prometheus' text format as {name, labels, value}. */
export function samplesOf(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.startsWith("ingest_") ? LINE.exec(line) : null;
    if (found === null) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** Return one number, of a sink where one is named; 0 when it is not there. */
export function valueOf(samples, name, sink = null) {
  const found = samples.find((sample) => sample.name === name && (sink === null || sample.labels.sink === sink));
  return found?.value ?? 0;
}

/** Return the sum of a sink's samples of one name, whatever other labels they have. */
export function totalOf(samples, name, sink) {
  const found = samples.filter((sample) => sample.name === name && sample.labels.sink === sink);
  return found.reduce((total, sample) => total + sample.value, 0);
}

/** Return the cumulative buckets of a histogram as [upper bound, count], summed over its sinks. */
export function bucketsOf(samples, name) {
  const buckets = new Map();
  for (const { name: found, labels, value } of samples) {
    if (found !== `${name}_bucket`) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return [...buckets].sort(([one], [other]) => one - other);
}

/** Return what was counted between two looks; all of it when the service was restarted. */
export function between(before, now) {
  const was = new Map(before);
  const since = now.map(([bound, count]) => [bound, count - (was.get(bound) ?? 0)]);
  return since.some(([, count]) => count < 0) ? now : since;
}

/** Return the bound that a share of all stayed within, in seconds; null when there were none.

    It is the bound of a bucket, never a guess within one. */
export function boundOf(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  return total === 0 ? null : buckets.find(([, count]) => count >= share * total)[0];
}

/** Return the mean of a histogram between two looks, in seconds; null when there was nothing. */
export function meanOf(before, now, name) {
  const total = (samples, end) =>
    samples.reduce((sum, sample) => (sample.name === `${name}_${end}` ? sum + sample.value : sum), 0);
  const count = total(now, "count") - total(before, "count");
  const sum = total(now, "sum") - total(before, "sum");
  if (count < 0) return meanOf([], now, name);
  return count === 0 ? null : sum / count;
}
