package org.mobileicsa.core

/** What `mobileicsa bench --device adb` asks for: one load, one warm-up, one idle pause, one timed run. */
data class BenchmarkRequest(
    val run: String,
    val promptTokens: Int,
    val generateTokens: Int,
    val idleMs: Long,
) {
    init {
        // It becomes part of a file's name, and it came in an intent.
        require(Regex("[a-z0-9]{1,32}").matches(run)) { "run: letters and digits only" }
        require(promptTokens > 0 && generateTokens > 0) { "token counts must be at least 1" }
        require(idleMs in 0..60_000) { "idle_ms must be 0 to 60000" }
    }
}

/** The phone as the benchmark sees it; [bootNanos] is CLOCK_BOOTTIME, which power traces use too. */
class Machine(val bootNanos: () -> Long, val rssBytes: () -> Long, val sleep: (Long) -> Unit)

class Benchmark(private val facts: ModelFacts, private val machine: Machine, private val prefixRows: ByteArray?) {
    /** The result as the JSON that `bench` reads (docs: android_demo/README.md). */
    fun run(request: BenchmarkRequest, open: () -> Session): Map<String, Any?> {
        val rssBefore = machine.rssBytes()
        val start = machine.bootNanos()
        return open().use { session ->
            val loaded = machine.bootNanos()
            val runner = TokenRunner(session, facts, prefixRows)
            val idle = window { machine.sleep(request.idleMs) }
            once(runner, request.copy(generateTokens = minOf(WARM_UP_TOKENS, request.generateTokens)))
            val timed = once(runner, request)
            mapOf(
                "format" to ModelFacts.FORMAT,
                "run" to request.run,
                "runtime" to session.runtime,
                "model" to facts.name,
                "prompt_tokens" to request.promptTokens,
                "load_ms" to (loaded - start) / 1e6,
                "first_token_ms" to timed.prefill.milliseconds,
                "step_ms" to timed.steps.map { it / 1e6 },
                "peak_rss_bytes" to machine.rssBytes(),
                "rss_before_load_bytes" to rssBefore,
                "windows_ns" to mapOf(
                    "idle" to idle.ends,
                    "prefill" to timed.prefill.ends,
                    "decode" to timed.decode.ends,
                ),
            )
        }
    }

    private class Window(start: Long, end: Long) {
        val ends = listOf(start, end)
        val milliseconds = (end - start) / 1e6
    }

    private class Timed(val prefill: Window, val decode: Window, val steps: List<Long>)

    private fun window(act: () -> Unit): Window {
        val start = machine.bootNanos()
        act()
        return Window(start, machine.bootNanos())
    }

    /** The ids are those of the host bench. */
    private fun once(runner: TokenRunner, request: BenchmarkRequest): Timed {
        val ids = IntArray(request.promptTokens + request.generateTokens) { (7 * it + 3) % facts.vocabSize }
        runner.reset()
        val prefill = window { greedy(runner.prefill(ids.copyOf(request.promptTokens))) }
        val steps = ArrayList<Long>()
        val decode = window {
            for (token in ids.drop(request.promptTokens)) {
                val start = machine.bootNanos()
                greedy(runner.decode(token))
                steps.add(machine.bootNanos() - start)
            }
        }
        return Timed(prefill, decode, steps)
    }

    /** An app would pick a token; that is part of a step's time. */
    private fun greedy(logits: FloatArray): Int = logits.indices.maxBy { logits[it] }

    companion object {
        const val WARM_UP_TOKENS = 8

        /** What is written where a run fails. */
        fun failure(run: String, error: Throwable): Map<String, Any?> = mapOf(
            "format" to ModelFacts.FORMAT,
            "run" to run,
            "error" to "${error.javaClass.simpleName}: ${error.message.orEmpty()}".take(500),
        )
    }
}
