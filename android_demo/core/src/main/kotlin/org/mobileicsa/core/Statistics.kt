package org.mobileicsa.core

fun median(values: List<Double>): Double {
    require(values.isNotEmpty())
    val ordered = values.sorted()
    val middle = ordered.size / 2
    return if (ordered.size % 2 == 1) ordered[middle] else (ordered[middle - 1] + ordered[middle]) / 2
}

/** The nearest-rank percentile: a value that was measured. */
fun percentile(values: List<Double>, share: Int): Double {
    val ordered = values.sorted()
    return ordered[maxOf((ordered.size * share + 99) / 100, 1) - 1]
}

/** VmHWM of /proc/self/status, in bytes; 0 where it does not say. */
fun peakRssBytes(status: String): Long =
    Regex("""^VmHWM:\s*(\d+) kB""", RegexOption.MULTILINE).find(status)?.let { it.groupValues[1].toLong() * 1024 } ?: 0L
