// Durations as Prometheus writes and wants them.

/** `$__rate_interval`: four scrapes at least, so that a rate has two samples even if one is lost. */
export function rateInterval(stepSeconds, scrapeSeconds) {
  return Math.max(stepSeconds + scrapeSeconds, 4 * scrapeSeconds);
}

/** A number of seconds in Prometheus' words. */
export function format(seconds) {
  return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))}ms` : `${Math.round(seconds)}s`;
}
