package org.mobileicsa.demo

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.SeekBar
import android.widget.Spinner
import android.widget.TextView
import kotlin.concurrent.thread
import org.mobileicsa.core.Choices
import org.mobileicsa.core.TokenRunner
import org.mobileicsa.core.generate

/** Pick a model, ask, read the answer as it comes with its speed below. */
class ChatActivity : Activity() {
    private lateinit var send: Button
    private lateinit var output: TextView
    private lateinit var adapters: Spinner
    private lateinit var exits: SeekBar
    private var chosen: Model? = null

    @Volatile
    private var stopped = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.chat)
        send = findViewById(R.id.send)
        output = findViewById(R.id.output)
        adapters = findViewById(R.id.adapters)
        exits = findViewById(R.id.exits)
        val prompt: EditText = findViewById(R.id.prompt)
        val models: Spinner = findViewById(R.id.models)
        val found = Model.pushed()
        models.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, found)
        models.onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, position: Int, id: Long) =
                choose(found[position])

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
        if (found.isEmpty()) output.setText(R.string.no_models)
        send.isEnabled = found.isNotEmpty()
        send.setOnClickListener { chosen?.let { answer(it, prompt.text.toString()) } }
        findViewById<Button>(R.id.stop).setOnClickListener { stopped = true }
        findViewById<Button>(R.id.benchmark).setOnClickListener {
            startActivity(Intent(this, BenchmarkActivity::class.java))
        }
    }

    override fun onDestroy() {
        stopped = true
        super.onDestroy()
    }

    /** Adapter and exit controls are there for models that offer the choice. */
    private fun choose(model: Model) {
        chosen = model
        val names = listOf(getString(R.string.no_adapter)) + model.facts.adapters
        adapters.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, names)
        adapters.visibility = if (names.size > 1) View.VISIBLE else View.GONE
        val threshold = model.facts.exitThreshold
        exits.visibility = if (threshold != null) View.VISIBLE else View.GONE
        exits.progress = ((threshold ?: 0.0) * exits.max).toInt()
    }

    private fun choices(model: Model) = Choices(
        adapter = model.facts.adapters.getOrNull(adapters.selectedItemPosition - 1),
        exitThreshold = model.facts.exitThreshold?.let { exits.progress.toDouble() / exits.max },
    )

    private fun answer(model: Model, prompt: String) {
        val choices = choices(model)
        stopped = false
        send.isEnabled = false
        output.text = ""
        thread(name = "chat") {
            val note = runCatching { run(model, choices, prompt) }
                .getOrElse { getString(R.string.failed, it.message.orEmpty()) }
            runOnUiThread {
                output.append("\n\n" + note)
                send.isEnabled = true
            }
        }
    }

    private fun run(model: Model, choices: Choices, prompt: String): String {
        val tokenizer = model.tokenizer()
        val ids = tokenizer.encode(prompt)
        // A model with a prefix has its BOS in there.
        val bos = model.facts.bosId?.takeIf { model.facts.prefixLength == 0 }
        val fed = if (bos == null) ids else intArrayOf(bos) + ids
        require(fed.isNotEmpty()) { "an empty prompt" }
        model.open(threads = 0, choices).use { session ->
            val runner = TokenRunner(session, model.facts, model.prefixRows)
            val produced = ArrayList<Int>()
            val timing = generate(runner, fed, LIMIT, model.facts.eosIds, TEMPERATURE) { token ->
                produced.add(token)
                // The whole again each time: a character may span tokens.
                val text = tokenizer.decode(produced.toIntArray())
                runOnUiThread { output.text = text }
                !stopped
            }
            return getString(R.string.speed, timing.prefillTokensPerSecond, timing.decodeTokensPerSecond ?: 0.0)
        }
    }

    private companion object {
        const val LIMIT = 256
        const val TEMPERATURE = 0.7
    }
}
