package org.mobileicsa.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.Spinner
import android.widget.TextView
import kotlin.concurrent.thread
import org.mobileicsa.core.Benchmark
import org.mobileicsa.core.BenchmarkRequest
import org.mobileicsa.core.median

/** The benchmark by hand: the same run as the headless one, its figures on the screen. */
class BenchmarkActivity : Activity() {
    private lateinit var models: Spinner
    private lateinit var start: Button
    private lateinit var output: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.benchmark)
        models = findViewById(R.id.models)
        start = findViewById(R.id.start)
        output = findViewById(R.id.output)
        val found = Model.pushed()
        models.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, found)
        start.isEnabled = found.isNotEmpty()
        if (found.isEmpty()) output.setText(R.string.no_models)
        start.setOnClickListener { run(found[models.selectedItemPosition]) }
    }

    private fun run(model: Model) {
        start.isEnabled = false
        output.setText(R.string.running)
        thread(name = "benchmark") {
            val shown = runCatching {
                val request = BenchmarkRequest("screen", PROMPT_TOKENS, GENERATE_TOKENS, idleMs = 0)
                figures(Benchmark(model.facts, machine(), model.prefixRows).run(request) { model.open(threads = 0) })
            }.getOrElse { getString(R.string.failed, it.message.orEmpty()) }
            runOnUiThread {
                output.text = shown
                start.isEnabled = true
            }
        }
    }

    private fun figures(result: Map<String, Any?>): String {
        val steps = (result["step_ms"] as List<*>).map { it as Double }
        val first = result["first_token_ms"] as Double
        return getString(
            R.string.figures,
            result["load_ms"] as Double,
            first,
            PROMPT_TOKENS / first * 1000,
            1000 / median(steps),
            (result["peak_rss_bytes"] as Long) / 1e6,
        )
    }

    private companion object {
        const val PROMPT_TOKENS = 64
        const val GENERATE_TOKENS = 64
    }
}
