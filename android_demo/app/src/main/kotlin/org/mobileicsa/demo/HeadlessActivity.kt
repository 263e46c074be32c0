package org.mobileicsa.demo

import android.app.Activity
import android.os.Bundle
import android.util.Log
import android.view.WindowManager
import java.io.File
import kotlin.concurrent.thread
import org.mobileicsa.core.Benchmark
import org.mobileicsa.core.BenchmarkRequest
import org.mobileicsa.core.Json

/** Runs one benchmark and writes its JSON: the far end of `mobileicsa bench --device adb`. Only adb may start it. */
class HeadlessActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        setContentView(R.layout.headless)
        thread(name = "benchmark") {
            val run = intent.getStringExtra("run").orEmpty()
            val result = runCatching { benchmark(run) }.getOrElse { error ->
                Log.e("mobileicsa", "benchmark $run", error)
                Benchmark.failure(run, error)
            }
            if (RUN.matches(run)) write(run, Json.write(result))
            runOnUiThread { finish() }
        }
    }

    private fun benchmark(run: String): Map<String, Any?> {
        val request = BenchmarkRequest(
            run = run,
            promptTokens = intent.getIntExtra("prompt_tokens", 0),
            generateTokens = intent.getIntExtra("generate_tokens", 0),
            idleMs = intent.getIntExtra("idle_ms", 0).toLong(),
        )
        val path = File(requireNotNull(intent.getStringExtra("model")) { "no model" })
        val model = Model(requireNotNull(path.parentFile) { "$path has no folder" })
        val threads = intent.getIntExtra("threads", 0)
        return Benchmark(model.facts, machine(), model.prefixRows).run(request) { model.open(threads) }
    }

    /** Whole or not at all: adb looks for the file while it is written. */
    private fun write(run: String, text: String) {
        val folder = requireNotNull(getExternalFilesDir(null)) { "no shared storage" }
        val temporary = File(folder, "$run.tmp")
        temporary.writeText(text)
        temporary.renameTo(File(folder, "bench-$run.json"))
    }

    private companion object {
        val RUN = Regex("[a-z0-9]{1,32}")
    }
}
